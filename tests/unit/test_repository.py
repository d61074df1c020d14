import os

import pytest
from model_zoo import Zoo, edit_manifest

from inference_core.errors import NotFound, PackageRefused, Unavailable
from inference_core.manifest import Package
from inference_core.model import Model, load_model
from inference_core.repository import Repository

MAX_BYTES = 1 << 20


def load(package: Package) -> Model:
    return load_model(package, intra_op_threads=1)


@pytest.fixture
def repository(zoo: Zoo) -> Repository:
    return Repository(zoo.root, load, MAX_BYTES)


def served(repository: Repository) -> dict[str, str]:
    return {model.manifest.name: model.manifest.version for model in repository.loaded()}


def test_what_batches_gain_is_measured_before_a_model_serves(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there can be batches and the policy wants them; never of a model that is under way."""
    measured = []
    monkeypatch.setattr("inference_core.repository.gains", lambda model: not measured.append(model.manifest.version))
    zoo.scale()
    zoo.scale(version=2)
    policy = zoo.root / "scale" / "model.toml"
    policy.write_text('batching = "auto"')
    elsewhere = Repository(zoo.root, load, MAX_BYTES)
    assert elsewhere.serve({"scale": "1"}) == {}
    assert (measured, elsewhere.get("scale").gains) == ([], False)
    here = Repository(zoo.root, load, MAX_BYTES, batches=True)
    policy.write_text("")
    here.serve({"scale": "1"})
    policy.write_text('batching = "auto"')
    here.serve({"scale": "1"})
    assert (measured, here.get("scale").gains) == ([], False)
    here.serve({"scale": "2"})
    assert (measured, here.get("scale").gains) == (["2"], True)


def test_versions_are_numbers(zoo: Zoo, repository: Repository) -> None:
    """9 comes before 10, and the newest is the largest number."""
    for version in (10, 9, 1, 100):
        zoo.scale(version=version)
    assert repository.versions("scale") == ["1", "9", "10", "100"]
    assert repository.choose("scale") == "100"


def test_a_policy_pins_a_version(zoo: Zoo, repository: Repository) -> None:
    """`model.toml` can hold a model at an older version; an empty one says nothing."""
    zoo.scale(version=1)
    zoo.scale(version=2)
    policy = zoo.root / "scale" / "model.toml"
    policy.write_text("")
    assert repository.choose("scale") == "2"
    policy.write_text('version = "1"\n')
    assert repository.choose("scale") == "1"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"version = ", id="no TOML"),
        pytest.param(b"version = 1", id="a version that is no text"),
        pytest.param(b'version = "latest"', id="a version that is no number"),
        pytest.param(b'verison = "1"', id="an unknown key"),
        pytest.param(b'version = "\xff"', id="no UTF-8"),
    ],
)
def test_a_bad_policy_is_refused(text: bytes, zoo: Zoo, repository: Repository) -> None:
    """What cannot be read is not ignored, and the reason names the file."""
    zoo.scale()
    (zoo.root / "scale" / "model.toml").write_bytes(text)
    with pytest.raises(PackageRefused, match=r"^scale/model\.toml: "):
        repository.choose("scale")


def test_a_policy_that_is_no_file_is_refused(zoo: Zoo, repository: Repository) -> None:
    """A folder in its place is a reason like any other."""
    zoo.scale()
    (zoo.root / "scale" / "model.toml").mkdir()
    with pytest.raises(PackageRefused, match=r"^scale/model\.toml: "):
        repository.choose("scale")


def test_other_names_are_ignored(zoo: Zoo, repository: Repository) -> None:
    """Only folders with a model's name that hold a folder with a version's are models."""
    zoo.scale()
    for name in (".git", "lost+found", "a b", "empty", "scale/v2", "scale/01", "scale/2.tmp", "scale/3\n", "new\n/1"):
        (zoo.root / name).mkdir(parents=True)
    (zoo.root / "README.md").write_text("")
    (zoo.root / "scale" / "4").write_text("no folder")
    (zoo.root / os.fsdecode(b"\xff")).mkdir()
    assert repository.names() == ["scale"]
    assert repository.versions("scale") == ["1"]


@pytest.mark.parametrize("name", ["..", "../models/scale", "scale/1", "/etc", "", "scale\0", "scale\n"])
def test_a_name_is_no_path(name: str, zoo: Zoo, repository: Repository) -> None:
    """A name that is none finds nothing, wherever it would lead."""
    zoo.scale()
    assert repository.versions(name) == []
    for find in (repository.choose, repository.get):
        with pytest.raises(NotFound, match=r"expected one of \['scale'\]$"):
            find(name)


@pytest.mark.parametrize("version", ["2", "..", "", "1/", "01"])
def test_a_version_that_is_not_there_is_not_found(version: str, zoo: Zoo, repository: Repository) -> None:
    """The message lists the versions that are."""
    zoo.scale()
    with pytest.raises(NotFound, match=r"expected one of the versions \['1'\], got"):
        repository.folder("scale", version)


def test_what_is_served_is_loaded(zoo: Zoo, repository: Repository) -> None:
    """Versions are loaded, replaced and unloaded as asked."""
    zoo.scale(version=1)
    zoo.scale(version=2)
    zoo.named()
    assert repository.serve({"scale": "1", "named": "1"}) == {}
    assert served(repository) == {"named": "1", "scale": "1"}
    assert repository.serve({"scale": "2", "named": None}) == {}
    assert served(repository) == {"scale": "2"}


def test_what_is_served_already_stays_loaded(zoo: Zoo, repository: Repository) -> None:
    """The same version again is the same session, not another."""
    zoo.scale()
    repository.serve({"scale": "1"})
    before = repository.get("scale")
    repository.serve({"scale": "1"})
    assert repository.get("scale") is before


def test_a_model_is_found_by_name_and_version(zoo: Zoo, repository: Repository) -> None:
    """A version that is given must be the one that is loaded."""
    zoo.scale(version=1)
    zoo.scale(version=2)
    with pytest.raises(Unavailable, match=r"^model 'scale': is not loaded$"):
        repository.get("scale")
    repository.serve({"scale": "2"})
    assert repository.get("scale") is repository.get("scale", "2")
    with pytest.raises(NotFound, match=r"^model 'scale': expected version 2, which is loaded, got 1$"):
        repository.get("scale", "1")
    with pytest.raises(NotFound, match=r"^model 'other': expected one of \['scale'\]$"):
        repository.get("other")


@pytest.mark.parametrize("successor", ["unsound", "missing"])
def test_a_model_answers_on_if_its_successor_is_refused(successor: str, zoo: Zoo, repository: Repository) -> None:
    """A version that cannot be loaded takes nothing from the one that is, nor from the other models."""
    zoo.scale(version=1)
    zoo.named()
    repository.serve({"scale": "1"})
    if successor == "unsound":
        edit_manifest(zoo.scale(version=2), model={"sha256": "0" * 64, "size_bytes": 1})
    failures = repository.serve({"scale": "2", "named": "1"})
    assert list(failures) == ["scale"]
    assert failures["scale"].startswith("version 2: ")
    assert served(repository) == {"named": "1", "scale": "1"}


def test_the_bound_of_the_model_file_is_kept(zoo: Zoo) -> None:
    """The repository passes its bound on."""
    size = (zoo.scale() / "model.onnx").stat().st_size
    assert Repository(zoo.root, load, size).serve({"scale": "1"}) == {}
    assert list(Repository(zoo.root, load, size - 1).serve({"scale": "1"})) == ["scale"]
