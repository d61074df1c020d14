import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_zoo import Zoo, edit_manifest

from inference_core.errors import PackageRefused
from inference_core.manifest import MAX_MANIFEST_BYTES, is_name, is_version, read_manifest, read_package, verify_package

MAX_BYTES = 1 << 20


def test_a_sound_package_is_read(zoo: Zoo) -> None:
    """What is returned is what lies in the folder, and the digest is that of the manifest's bytes."""
    folder = zoo.scale()
    package = read_package(folder, MAX_BYTES)
    assert package.model == (folder / "model.onnx").read_bytes()
    assert (package.manifest.name, package.manifest.version) == ("scale", "1")
    assert package.digest == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def change(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_manifest(folder, **changes)


def write(text: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "manifest.json").write_bytes(text) and None


def without(key: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))

    return remove


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.onnx"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def x(*shape: int, **more: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": shape, **more}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(
            lambda folder: (folder / "manifest.json").unlink(), "manifest.json: No such file", id="no manifest"
        ),
        pytest.param(
            lambda folder: (folder / "model.onnx").unlink(),
            "model.onnx: expected .* bytes as in the manifest, got 0",
            id="no model",
        ),
        pytest.param(write(b""), "manifest.json: Input data was truncated", id="an empty manifest"),
        pytest.param(write(b"{"), "manifest.json: Input data was truncated", id="a cut manifest"),
        pytest.param(write(b"[]"), "manifest.json: Expected `object`", id="a list"),
        pytest.param(write(b'{"name": "\xff"}'), "manifest.json: 'utf-8' codec", id="no UTF-8"),
        pytest.param(change(extra=1), "manifest.json: Object contains unknown field `extra`", id="an unknown key"),
        pytest.param(
            change(model={"sha256": "x", "size_bytes": 1}),
            "manifest.json: Expected `str` matching regex",
            id="no SHA-256",
        ),
        pytest.param(change(inputs=[]), "manifest.json: Expected `array` of length >= 1", id="no inputs"),
        pytest.param(change(outputs=[]), "manifest.json: Expected `array` of length >= 1", id="no outputs"),
        pytest.param(change(max_batch_size=-1), "manifest.json: Expected `int` >= 0", id="negative rows"),
        pytest.param(
            change(version="01"), "manifest.json: Expected `str` matching regex", id="a version that is no number"
        ),
        pytest.param(change(version=1), "manifest.json: Expected `str`, got `int`", id="a version that is no text"),
        pytest.param(
            change(name="../scale"), "manifest.json: Expected `str` matching regex", id="a name that is a path"
        ),
        pytest.param(
            change(name="other"), "manifest.json: expected scale/1 as the folder says, got other/1", id="another name"
        ),
        pytest.param(
            change(version="2"), "manifest.json: expected scale/1 as the folder says, got scale/2", id="another version"
        ),
        pytest.param(
            change(model={"sha256": "0" * 64, "size_bytes": 1}),
            "model.onnx: expected 1 bytes as in the manifest, got",
            id="another size",
        ),
        pytest.param(flip_a_bit, "model.onnx: expected SHA-256 .* as in the manifest, got", id="another model"),
        pytest.param(
            change(inputs=[x(-1, 3), x(-1, 3)]), "manifest.json: inputs: expected each name once", id="an input twice"
        ),
        pytest.param(
            change(outputs=[x(-1), x(-1)]), "manifest.json: outputs: expected each name once", id="an output twice"
        ),
        pytest.param(
            change(inputs=[x(-1, 0)]),
            "manifest.json: input 'x': expected dimensions of 1 and more",
            id="an empty dimension",
        ),
        pytest.param(change(inputs=[x(-2, 3)]), "manifest.json: Expected `int` >= -1", id="a negative dimension"),
        pytest.param(
            change(inputs=[x(4, 3)]),
            "manifest.json: input 'x': expected the batch, -1, as the first",
            id="a fixed batch",
        ),
        pytest.param(
            change(outputs=[x()]),
            "manifest.json: output 'x': expected the batch, -1, as the first",
            id="an output without rows",
        ),
        pytest.param(
            change(inputs=[x(-1, 3, features=["a"])]),
            "expected shape .*-1, 1.* for its features, got",
            id="too few features",
        ),
    ],
)
def test_an_unsound_package_is_refused(spoil: Callable[[Path], None], said: str, zoo: Zoo) -> None:
    """The reason names the file, what was expected and what is there."""
    folder = zoo.scale()
    spoil(folder)
    for check in (read_package, verify_package):
        with pytest.raises(PackageRefused, match=rf"^{said}|^manifest.json: .*{said}"):
            check(folder, MAX_BYTES)


@pytest.mark.parametrize(
    "key", ["name", "version", "model", "inputs", "outputs", "max_batch_size", "licence", "source", "metrics", "built"]
)
def test_every_key_is_required(key: str, zoo: Zoo) -> None:
    """A manifest says everything that it must say."""
    folder = zoo.scale()
    without(key)(folder)
    with pytest.raises(PackageRefused, match=rf"^manifest.json: Object missing required field `{key}`"):
        read_package(folder, MAX_BYTES)


IMAGE = {"input": "image", "output": "p", "size": 8, "crop_fraction": 1.0, "mean": [0.0] * 3, "scale": [1.0] * 3}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"labels": ["red", "green"]}, id="too few labels"),
        pytest.param({"labels": ["red", "green", "blue", "black"]}, id="too many labels"),
        pytest.param({"labels": []}, id="no labels"),
        pytest.param({"image": IMAGE | {"input": "picture"}}, id="an unknown input"),
        pytest.param({"image": IMAGE | {"output": "q"}}, id="an unknown output"),
        pytest.param({"image": IMAGE | {"size": 9}}, id="another size"),
        pytest.param({"image": IMAGE | {"size": 0}}, id="no size"),
        pytest.param({"image": IMAGE | {"scale": [1.0, 0.0, 1.0]}}, id="a scale of zero"),
        pytest.param({"image": IMAGE | {"crop_fraction": 0.0}}, id="nothing left of the photo"),
        pytest.param({"image": IMAGE | {"crop_fraction": 1.01}}, id="more than the photo"),
        pytest.param({"max_batch_size": 0}, id="no rows"),
    ],
)
def test_an_image_model_that_does_not_hold_together_is_refused(changes: dict[str, Any], zoo: Zoo) -> None:
    """Labels, size and names must fit the tensors, lest every request fail."""
    folder = zoo.colour()
    read_manifest(folder)
    edit_manifest(folder, **changes)
    with pytest.raises(PackageRefused, match=r"^manifest\.json: (image: expected|Expected `(int|float)`)"):
        read_manifest(folder)


def test_the_model_is_bounded(zoo: Zoo) -> None:
    """As many bytes as allowed are read, and one more is refused by the size of the file alone."""
    folder = zoo.scale()
    size = (folder / "model.onnx").stat().st_size
    assert len(read_package(folder, size).model) == size
    verify_package(folder, size)
    for check in (read_package, verify_package):
        with pytest.raises(PackageRefused, match=rf"^model.onnx: expected at most {size - 1} bytes, got {size}$"):
            check(folder, size - 1)


def test_the_manifest_is_bounded(zoo: Zoo) -> None:
    """A manifest of the most bytes is read, one of a byte more is refused."""
    folder = zoo.scale()
    path = folder / "manifest.json"
    path.write_text(path.read_text().ljust(MAX_MANIFEST_BYTES))
    read_manifest(folder)
    path.write_text(path.read_text() + " ")
    with pytest.raises(
        PackageRefused, match=rf"^manifest.json: expected at most {MAX_MANIFEST_BYTES} bytes, got more$"
    ):
        read_manifest(folder)


def test_a_model_that_cannot_be_read_is_refused(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails is a reason like any other."""

    def fail(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    folder = zoo.scale()
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(PackageRefused, match=r"^model.onnx: Permission denied$"):
        read_package(folder, MAX_BYTES)


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [
        ("a", True, False),
        ("1", True, True),
        ("10", True, True),
        ("999999999", True, True),
        ("1000000000", True, False),
        ("0", True, False),
        ("01", True, False),
        ("1.0", True, False),
        ("v1", True, False),
        ("\u0661", False, False),
        ("1\n", False, False),
        ("a\n", False, False),
        ("", False, False),
        (".hidden", False, False),
        ("..", False, False),
        ("a/b", False, False),
        ("a b", False, False),
        ("x" * 64, True, False),
        ("x" * 65, False, False),
    ],
)
def test_names_and_versions(text: str, name: bool, version: bool) -> None:
    """A name is a plain word of at most 64 characters, a version a decimal number of at most nine digits."""
    assert (is_name(text), is_version(text)) == (name, version)
