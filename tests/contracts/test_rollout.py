"""Models change while requests go on: in every worker or in none, and never at the cost of a request."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from load import Load
from model_zoo import Zoo, edit_manifest
from servers import Server, wait_until

PREDICT = "/v1/models/scale:predict"
INSTANCES = {"instances": [[1, 2, 3]]}
WORKERS = 2


@pytest.fixture
def repository(zoo: Zoo) -> Zoo:
    """Version 1 of the model "scale" doubles."""
    zoo.scale(version=1, factor=2)
    return zoo


def versions(server: Server) -> set[str]:
    """What many new connections, and so both workers, say is served."""
    return {server.post(PREDICT, INSTANCES).json()["model"]["version"] for _ in range(20)}


def load(server: Server, **parameters: str) -> tuple[int, str]:
    answer = server.post("/v2/repository/models/scale/load", {"parameters": parameters})
    return answer.status, answer.json().get("error", "")


def test_a_new_version_reaches_every_worker_before_the_answer(repository: Zoo, worker_class: str) -> None:
    with Server(repository.root, worker_class, workers=WORKERS) as server:
        repository.scale(version=2, factor=3)
        assert versions(server) == {"1"}, "nothing is loaded unasked"
        assert load(server) == (200, "")
        assert versions(server) == {"2"}
        assert server.post(PREDICT, INSTANCES).json()["predictions"] == [[3, 6, 9]]
        assert load(server, version="1") == (200, "")
        assert versions(server) == {"1"}, "rolled back"


def test_a_worker_that_starts_later_serves_what_the_others_serve(repository: Zoo, worker_class: str) -> None:
    with Server(repository.root, worker_class, workers=WORKERS) as server:
        repository.scale(version=2, factor=3)
        repository.scale(version=3, factor=4)
        assert load(server, version="2") == (200, "")
        old = set(server.workers())
        for worker in old:
            server.kill(worker)
        wait_until(lambda: not old & set(server.workers()) and server.is_ready(), "both are replaced")
        assert versions(server) == {"2"}


def test_a_swap_from_good_to_bad_to_good_under_load_fails_no_request(repository: Zoo, worker_class: str) -> None:
    with Server(repository.root, worker_class, workers=WORKERS) as server:
        bad = repository.scale(version=2, factor=3)
        (bad / "model.onnx").write_bytes(b"not a model".ljust(bad.joinpath("model.onnx").stat().st_size))
        repository.scale(version=3, factor=4)
        with Load(server, PREDICT, INSTANCES, rate=100) as load_:
            wait_until(lambda: load_.sent > 50, "some requests")
            for _ in range(3):
                assert load(server, version="3") == (200, "")
                status, reason = load(server, version="2")
                assert status == 400
                assert "SHA-256" in reason
                assert load(server, version="1") == (200, "")
            done = load_.sent
            wait_until(lambda: load_.sent > done + 50, "some more requests")
        assert load_.failed == {}
        served = {body.partition(b'"version":')[2][:3] for body in load_.bodies}
        assert served == {b'"1"', b'"3"'}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "model.onnx").write_bytes(b"x"), "expected"),
        (lambda folder: (folder / "model.onnx").unlink(), "bytes as in the manifest, got 0"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
        (lambda folder: edit_manifest(folder, version="7"), "expected scale/2"),
        (lambda folder: edit_manifest(folder, signed="no"), "unknown field"),
        (
            lambda folder: edit_manifest(folder, inputs=[{"name": "x", "datatype": "INT64", "shape": [-1, 3]}]),
            "expected INT64 as in the manifest, got FP32",
        ),
        (
            lambda folder: edit_manifest(folder, outputs=[{"name": "z", "datatype": "FP32", "shape": [-1, 3]}]),
            "outputs: expected ['z'] as in the manifest, got ['y']",
        ),
    ],
    ids=["cut", "no model", "no manifest", "malformed manifest", "other version", "unknown key", "datatype", "output"],
)
def test_a_bad_package_is_refused_with_the_reason(
    repository: Zoo, worker_class: str, spoil: Callable[[Path], object], reason: str
) -> None:
    with Server(repository.root, worker_class, workers=1) as server:
        spoil(repository.scale(version=2, factor=3))
        status, got = load(server, version="2")
        assert status == 400
        assert reason in got
        assert versions(server) == {"1"}
        index = {entry["version"]: entry for entry in server.post("/v2/repository/index", {}).json()}
        assert index["1"]["state"] == "READY"
        assert index["2"]["state"] == "UNAVAILABLE"
        assert reason in index["2"]["reason"]


def test_a_package_over_the_size_limit_is_refused(repository: Zoo, worker_class: str) -> None:
    size = (repository.root / "scale/1/model.onnx").stat().st_size
    repository.scale(version=2, factor=3)
    with (repository.root / "scale/2/model.onnx").open("ab") as file:
        file.write(b"\0")
    with Server(repository.root, worker_class, workers=1, max_model_bytes=size) as server:
        status, reason = load(server, version="2")
        assert status == 400
        assert f"expected at most {size} bytes, got {size + 1}" in reason


def test_unloading_and_loading_again(repository: Zoo, worker_class: str) -> None:
    with Server(repository.root, worker_class, workers=WORKERS) as server:
        assert server.post("/v2/repository/models/scale/unload", {}).status == 200
        assert {server.post(PREDICT, INSTANCES).status for _ in range(10)} == {503}
        assert server.get("/v2/models/scale/ready").status == 503
        assert load(server) == (200, "")
        assert versions(server) == {"1"}


def test_polling_picks_up_a_new_version(repository: Zoo, worker_class: str) -> None:
    with Server(repository.root, worker_class, workers=WORKERS, poll_seconds=0.1) as server:
        staged = repository.scale(name="staged", version=2, factor=3)
        edit_manifest(staged, name="scale")
        shutil.move(staged, repository.root / "scale/2")
        wait_until(lambda: versions(server) == {"2"}, "version 2 is served by every worker")


def test_a_version_that_was_replaced_in_place_is_refused(repository: Zoo, worker_class: str) -> None:
    with Server(repository.root, worker_class, workers=1) as server:
        shutil.rmtree(repository.root / "scale/1")
        repository.scale(version=1, factor=5)
        status, reason = load(server, version="1")
        assert status == 400
        assert "packages never change" in reason
        assert server.post(PREDICT, INSTANCES).json()["predictions"] == [[2, 4, 6]]


def test_a_reload_without_the_models_folder_does_not_end_the_server(repository: Zoo, worker_class: str) -> None:
    with Server(repository.root, worker_class, workers=1) as server:
        away = repository.root.with_name("away")
        repository.root.rename(away)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "new models are not taken up" in server.log(), "the reload is in the log")
        away.rename(repository.root)
        server.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: {server.post(PREDICT, INSTANCES).status for _ in range(20)} == {200},
            "workers that have the models again answer alone",
        )


def test_a_lost_state_folder_is_told_and_not_served_around(repository: Zoo, worker_class: str, tmp_path: Path) -> None:
    with Server(repository.root, worker_class, workers=1, state_dir=tmp_path / "state") as server:
        shutil.rmtree(tmp_path / "state")
        status, reason = load(server)
        assert status == 503
        assert "state folder is lost" in reason
        assert versions(server) == {"1"}
        wait_until(lambda: server.get("/v2/health/ready").status == 503, "the server says that it is not ready")


def test_a_server_starts_without_a_sound_package_but_is_not_ready(
    repository: Zoo, worker_class: str, tmp_path: Path
) -> None:
    (repository.root / "scale/1/model.onnx").write_bytes(b"x")
    server = Server(repository.root, worker_class, workers=1)
    server.is_ready = lambda: server.process.poll() is None and _answers(server)  # type: ignore[method-assign]
    with server:
        answer = server.get("/v2/health/ready")
        assert answer.status == 503
        assert "scale" in answer.json()["reasons"]
        assert server.get("/v2/health/live").status == 200


def _answers(server: Server) -> bool:
    try:
        return server.get("/v2/health/live").status == 200
    except OSError:
        return False
