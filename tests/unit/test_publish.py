from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from signing import private_pem, public_pem

from inference_core.errors import PackageRefused
from inference_core.manifest import MANIFEST_FILE, MODEL_FILES, Check, Gate, Manifest, Step, TensorSpec, read_package
from model_tools import publish as module
from model_tools.publish import Built, describe, publish, publish_all, read_private_key

MODEL = b"what ONNX Runtime would load"
OTHER_MODEL = b"what it would load otherwise"


def make_manifest(model: bytes = MODEL, **changes: object) -> Manifest:
    manifest = Manifest(
        name="tiny",
        version="1",
        description="A model for tests.",
        model=describe(model),
        inputs=(TensorSpec("x", "FP32", (-1, 2)),),
        outputs=(TensorSpec("y", "FP32", (-1, 1)),),
        max_batch_size=4,
        licence="Apache-2.0",
        source={},
        metrics={"latency_ms": 1.5},
        built={"python": "3.11"},
    )
    return msgspec.structs.replace(manifest, **changes)


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_is_published_reads_back(tmp_path: Path) -> None:
    """A published package reads back as what was published, and nothing else is left in the repository."""
    package = publish(tmp_path, make_manifest(), MODEL)

    assert package == read_package(tmp_path / "tiny" / "1", 1000)
    assert (package.manifest, package.model) == (make_manifest(), MODEL)
    assert names_in(tmp_path) == ["tiny", "tiny/1", "tiny/1/manifest.json", "tiny/1/model.onnx"]


def test_manifest_is_for_people_too(tmp_path: Path) -> None:
    """The manifest is indented and ends its last line."""
    publish(tmp_path, make_manifest(), MODEL)

    text = (tmp_path / "tiny" / "1" / MANIFEST_FILE).read_text()
    assert text.startswith('{\n  "name": "tiny",\n')
    assert text.endswith("}\n")


def test_same_again_keeps_the_package(tmp_path: Path) -> None:
    """A rebuild that comes to the same model keeps the package and its digest, whatever was measured this time."""
    first = publish(tmp_path, make_manifest(), MODEL)
    again = publish(tmp_path, make_manifest(metrics={"latency_ms": 1.7}, built={"python": "3.12"}), MODEL)

    assert again == first


def test_what_steps_have_found_out_is_not_to_the_digit_the_same(tmp_path: Path) -> None:
    """As it was computed on another processor; what they were told is."""

    def after(**options: object) -> Manifest:
        return make_manifest(lineage=(Step("static-int8", options, describe(MODEL)),))

    first = publish(tmp_path, after(max_rows=8, harm={"a": 0.1}), MODEL)
    assert publish(tmp_path, after(max_rows=8, harm={"a": 0.1001}, layers={"a": {"error": 0.2}}), MODEL) == first
    with pytest.raises(PackageRefused, match="with other content"):
        publish(tmp_path, after(max_rows=9, harm={"a": 0.1}), MODEL)


@pytest.mark.parametrize(
    ("manifest", "model"),
    [(make_manifest(OTHER_MODEL), OTHER_MODEL), (make_manifest(max_batch_size=8), MODEL)],
    ids=["other model", "other manifest"],
)
def test_refuses_to_overwrite(tmp_path: Path, manifest: Manifest, model: bytes) -> None:
    """A version that exists is never overwritten with something else."""
    first = publish(tmp_path, make_manifest(), MODEL)

    with pytest.raises(PackageRefused, match=r"^tiny/1: exists already"):
        publish(tmp_path, manifest, model)
    assert read_package(tmp_path / "tiny" / "1", 1000) == first


def test_refuses_to_keep_a_damaged_package(tmp_path: Path) -> None:
    """A package that no longer reads back is reported, not taken for the same."""
    publish(tmp_path, make_manifest(), MODEL)
    (tmp_path / "tiny" / "1" / "model.onnx").write_bytes(MODEL[::-1])

    with pytest.raises(PackageRefused, match="SHA-256"):
        publish(tmp_path, make_manifest(), MODEL)


def test_of_several_all_are_published_or_none(tmp_path: Path) -> None:
    """One that is refused holds back those before it as well."""
    publish(tmp_path, make_manifest(name="second"), MODEL)
    before = names_in(tmp_path)
    for name, said in (("second", "second/1: exists already"), ("../third", "manifest.json: ")):
        last = Built(make_manifest(OTHER_MODEL, name=name), OTHER_MODEL)
        with pytest.raises(PackageRefused, match=f"^{said}"):
            publish_all(tmp_path, [Built(make_manifest(), MODEL), last])
        assert names_in(tmp_path) == before
    packages = publish_all(tmp_path, [Built(make_manifest(), MODEL), Built(make_manifest(name="second"), MODEL)])
    assert [package.manifest.name for package in packages] == ["tiny", "second"]


@pytest.mark.parametrize("runtime", ["torchscript", "litert"])
def test_the_file_is_called_as_its_runtime_wants(tmp_path: Path, runtime: str) -> None:
    """And nothing else is there."""
    publish(tmp_path, make_manifest(runtime=runtime), MODEL)
    assert names_in(tmp_path / "tiny" / "1") == ["manifest.json", MODEL_FILES[runtime]]


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_replaces_on_request(tmp_path: Path, damaged: bool) -> None:
    """With `replace` the version gets the new content, readable or not, and no trace of the old stays."""
    publish(tmp_path, make_manifest(), MODEL)
    if damaged:
        (tmp_path / "tiny" / "1" / MANIFEST_FILE).unlink()

    package = publish(tmp_path, make_manifest(OTHER_MODEL), OTHER_MODEL, replace=True)

    assert read_package(tmp_path / "tiny" / "1", 1000) == package
    assert package.model == OTHER_MODEL
    assert names_in(tmp_path) == ["tiny", "tiny/1", "tiny/1/manifest.json", "tiny/1/model.onnx"]


@pytest.mark.parametrize(
    "manifest",
    [make_manifest(OTHER_MODEL), make_manifest(inputs=()), make_manifest(version="01"), make_manifest(name="../tiny")],
    ids=["hash of another model", "no inputs", "no such version", "name leads out"],
)
def test_nothing_is_left_of_what_cannot_be_read_back(tmp_path: Path, manifest: Manifest) -> None:
    """A manifest that the server would refuse is refused here, before anything can be seen of it."""
    repository = tmp_path / "models"

    with pytest.raises(PackageRefused):
        publish(repository, manifest, MODEL)
    assert not [name for name in names_in(tmp_path) if name.endswith(("model.onnx", MANIFEST_FILE))]


@pytest.mark.parametrize("replace", [False, True])
def test_nothing_is_half_written_when_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    """A failure on the way leaves the repository as it was."""
    if replace:
        publish(tmp_path, make_manifest(), MODEL)
    before = [name for name in names_in(tmp_path) if name != "tiny"]

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        publish(tmp_path, make_manifest(OTHER_MODEL), OTHER_MODEL, replace=replace)
    assert [name for name in names_in(tmp_path) if name != "tiny"] == before


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The file with a private key; its public half lies beside it as keys.pem."""
    private = Ed25519PrivateKey.generate()
    (tmp_path / "keys.pem").write_bytes(public_pem(private))
    path = tmp_path / "key.pem"
    path.write_bytes(private_pem(private))
    return path


def test_what_is_published_with_a_key_is_signed(tmp_path: Path, key: Path) -> None:
    """A strict server takes it; also a package that was there unsigned, whose content stays as it is."""
    manifest = make_manifest(gate=Gate((Check("size", 28.0),), 1, ""))
    package = publish(tmp_path / "signed", manifest, MODEL, key=read_private_key(key))
    assert read_package(tmp_path / "signed" / "tiny" / "1", 1000, str(tmp_path / "keys.pem")) == package

    first = publish(tmp_path / "later", manifest, MODEL)
    again = publish(tmp_path / "later", manifest, MODEL, key=read_private_key(key))
    assert again == first == read_package(tmp_path / "later" / "tiny" / "1", 1000, str(tmp_path / "keys.pem"))
    assert names_in(tmp_path / "later" / "tiny" / "1") == ["manifest.json", "manifest.sig", "model.onnx"]


def test_a_package_that_passed_no_gate_is_not_one_that_did(tmp_path: Path) -> None:
    publish(tmp_path, make_manifest(), MODEL)
    with pytest.raises(PackageRefused, match="exists already"):
        publish(tmp_path, make_manifest(gate=Gate((Check("size", 28.0),), 1, "")), MODEL)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"expected a private key \(PEM, Ed25519\): "),
        (private_pem(generate_private_key(SECP256R1())), "expected a private key of Ed25519, got one of another kind"),
        (public_pem(Ed25519PrivateKey.generate()), r"expected a private key \(PEM, Ed25519\): "),
    ],
    ids=["empty", "another kind", "a public one"],
)
def test_what_is_no_private_key_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(PackageRefused, match=f"^{path}: {said}"):
        read_private_key(path)
    with pytest.raises(PackageRefused, match=r"nowhere: expected a private key \(PEM, Ed25519\): .*No such file"):
        read_private_key(tmp_path / "nowhere")
