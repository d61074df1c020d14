"""A strict server, TIERCEL_STRICT_KEYS_FILE: at its start, and when it is asked to load something."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from app_client import Client, start
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from model_zoo import Zoo, edit_manifest
from signing import public_pem, sign

from batch_worker.models import Models
from inference_core.errors import PackageRefused
from inference_core.jobs import Job
from inference_core.manifest import Package, read_package
from inference_core.model import Model, load_model
from inference_core.repository import Repository

KEY = Ed25519PrivateKey.generate()
LOAD = "/v2/repository/models/scale/load"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.pem"
    path.write_bytes(public_pem(KEY))
    return path


@pytest.fixture
def strict(zoo: Zoo, tmp_path: Path, keys: Path) -> Iterator[Client]:
    """A strict server, which finds a version that is signed and a newer one that is not."""
    sign(zoo.scale(), KEY)
    zoo.scale(version=2)
    services = start(zoo.root, tmp_path / "state", strict_keys_file=str(keys))
    yield Client(services)
    services.rollout.stop()


def test_the_newest_signed_version_is_served(strict: Client) -> None:
    """The index says why the newer one is not."""
    assert strict.get("/v1/models/scale").json["version"] == "1"
    states = {entry["version"]: entry for entry in strict.post("/v2/repository/index").json}
    assert states["2"]["reason"] == "manifest.sig: expected a signature: No such file or directory"


def test_what_is_not_signed_is_not_loaded(strict: Client, zoo: Zoo) -> None:
    """Until it is; and what was altered after that is not loaded either."""
    version_2, version_3 = zoo.root / "scale" / "2", zoo.scale(version=3)
    body = {"parameters": {"version": "2"}}
    assert "manifest.sig: expected a signature" in strict.refused(400, strict.post(LOAD, body))
    sign(version_2, KEY)
    assert strict.post(LOAD, body).status_code == 200
    sign(version_3, KEY)
    edit_manifest(version_3, max_batch_size=9)
    assert "manifest.sig: expected the signature of the manifest" in strict.refused(400, strict.post(LOAD))
    assert strict.get("/v1/models/scale").json["version"] == "2"


def test_a_server_without_its_keys_does_not_start(zoo: Zoo, tmp_path: Path) -> None:
    """With the setting's name."""
    zoo.scale()
    with pytest.raises(
        PackageRefused, match=r"^TIERCEL_STRICT_KEYS_FILE: /nowhere: expected public keys: No such file"
    ):
        start(zoo.root, tmp_path / "state", strict_keys_file="/nowhere")


def test_a_batch_worker_is_strict_too(zoo: Zoo, keys: Path) -> None:
    """A job's model is looked at when it is loaded, not only when the job was accepted."""
    folder = sign(zoo.scale(), KEY)

    def load(package: Package) -> Model:
        return load_model(package, 1)

    def job() -> Job:
        digest = read_package(folder, 1 << 20).digest
        return Job("id", "owner", "scale", "1", digest, kind="instances", rows=1, bytes=1, created=0.0, request_id="")

    models = Models(Repository(zoo.root, load, 1 << 20, str(keys)), load, 1 << 20)
    assert models.get(job()).manifest.name == "scale"
    edit_manifest(folder, max_batch_size=9)
    with pytest.raises(PackageRefused, match=r"^manifest\.sig: expected the signature of the manifest"):
        models.get(job())
