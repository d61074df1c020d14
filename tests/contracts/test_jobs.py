"""Batch jobs with real servers of several workers, a real Redis, and a batch worker in a process of its own."""

import io
import json
import signal
import socket
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
from app_client import MODELS
from batch import ENDED, Worker, lines, photo, read_lines, zipped
from edge import Edge
from model_zoo import Zoo
from PIL import Image
from redis_server import RedisServer
from servers import Answer, Server, held, read_answer, wait_until

JOBS, LINES, ZIP = "/v1/jobs", {"Content_Type": "application/x-ndjson"}, {"Content_Type": "application/zip"}
MAX_BODY, MAX_JOB = 1 << 20, 3 << 20
MANY = 100_000


class Stage:
    """A server of two workers, and what its jobs need: `worker()` is who works on them."""

    def __init__(self, folder: Path, models: Path, worker_class: str, **settings: Any) -> None:
        self.jobs, self.models = folder / "jobs", models
        self.redis = RedisServer(folder)
        self._settings = {"jobs_dir": self.jobs, "queue_url": self.redis.url} | settings
        self.server = Server(models, worker_class, workers=2, state_dir=folder / "state", **self._settings)

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._stack.enter_context(self.redis)
        self._stack.enter_context(self.server)
        wait_until(lambda: len(self.server.workers()) == 2, "both workers have started")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def worker(self) -> Worker:
        return Worker(self.redis.url, self.jobs, self.models)

    def submit(self, query: str, body: bytes, **headers: str) -> Any:
        """A job that is taken, sooner or later: who has too much to do says to try again."""
        answers: list[Answer] = []

        def is_taken() -> bool:
            answers.append(self.server.post(f"{JOBS}{query}", body, **headers))
            assert answers[-1].status in (202, 503), answers[-1]
            return answers[-1].status == 202

        wait_until(is_taken, "a job is taken")
        return answers[-1].json()

    def state(self, job: Any) -> Any:
        return self.server.get(f"{JOBS}/{job['id']}").json()

    def ended(self, job: Any, seconds: float = 60) -> Any:
        wait_until(lambda: self.state(job)["status"] in ENDED, f"{job['id']} ends: {self.state(job)}", seconds)
        return self.state(job)

    def results(self, job: Any) -> list[Any]:
        """Of a job that succeeds, one for each row, in their order."""
        state = self.ended(job)
        assert (state["status"], state["done"]) == ("succeeded", job["rows"]), state
        answer = self.server.get(f"{JOBS}/{job['id']}/results")
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/x-ndjson")
        found = read_lines(answer.body)
        assert [each["index"] for each in found] == list(range(job["rows"]))
        return found


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that ship, and tiny ones."""
    zoo = Zoo(tmp_path_factory.mktemp("jobs") / "models")
    zoo.scale(rows=1024)
    zoo.slow()
    zoo.colour()
    for path in MODELS.glob("*/1"):
        (zoo.root / path.parent.name).symlink_to(path.parent)
    return zoo.root


@pytest.fixture(scope="module")
def shared_stage(repository: Path, worker_class: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    limits = {"max_body_bytes": MAX_BODY, "max_job_bytes": MAX_JOB}
    with Stage(tmp_path_factory.mktemp("stage"), repository, worker_class, **limits) as stage, stage.worker():
        yield stage


@pytest.fixture
def stage(shared_stage: Stage) -> Iterator[Stage]:
    """Nothing that a client sends ends a worker."""
    before = set(shared_stage.server.workers())
    yield shared_stage
    assert set(shared_stage.server.workers()) == before, shared_stage.server.log()[-3000:]


@pytest.fixture
def start(zoo: Zoo, tmp_path: Path, worker_class: str) -> Iterator[Callable[[], Stage]]:
    """A stage of this test's own, which serves what is in `zoo`; without a batch worker."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Stage(tmp_path, zoo.root, worker_class))


# Results are those of :predict.


def test_ten_thousand_rows_are_what_predict_says_of_each(stage: Stage) -> None:
    """0 lost, 0 doubled."""
    examples = json.loads((MODELS / "breast-cancer/examples/instances.json").read_text())["instances"]
    rows = [[round(value * (1 + i / 20_000), 6) for value in examples[i % 2]] for i in range(10_000)]
    job = stage.submit("?model=breast-cancer", b"".join(lines(rows)), **LINES)
    expected = []
    for at in range(0, len(rows), 1000):
        answer = stage.server.post("/v1/models/breast-cancer:predict", {"instances": rows[at : at + 1000]})
        expected += answer.json()["predictions"]
    assert [each["prediction"] for each in stage.results(job)] == expected
    assert len({json.dumps(each) for each in expected}) > 100, "they can be told apart"


def test_photos_are_what_predict_says_of_each(stage: Stage) -> None:
    files = {}
    for path in sorted((MODELS / "efficientnet-lite0/examples").glob("*.jpg")):
        with Image.open(path) as image:
            for turn in range(4):
                memory = io.BytesIO()
                image.resize((240, 240)).rotate(90 * turn).save(memory, "JPEG")
                files[f"{path.stem}/{turn}.jpg"] = memory.getvalue()
    job = stage.submit("?model=efficientnet-lite0&top_k=3", zipped(files, zipfile.ZIP_DEFLATED), **ZIP)
    found = stage.results(job)
    assert [each["name"] for each in found] == list(files)
    path = "/v1/models/efficientnet-lite0:predict?top_k=3"
    for each, body in zip(found, files.values(), strict=True):
        expected = stage.server.post(path, body, Content_Type="image/jpeg").json()["predictions"]
        got = each["prediction"]
        assert [label["label"] for label in got] == [label["label"] for label in expected]
        assert [label["score"] for label in got] == pytest.approx([label["score"] for label in expected], rel=1e-5)


def test_a_prediction_becomes_a_job_if_the_client_prefers_it(stage: Stage) -> None:
    path = "/v1/models/{}:predict"
    rows = stage.server.post(path.format("scale"), {"instances": [[1, 2, 3]] * 3}, Prefer="respond-async")
    fields = {"Content_Type": "image/png", "Prefer": "respond-async"}
    one = stage.server.post(path.format("colour"), photo(), **fields)
    for answer in (rows, one):
        assert (answer.status, answer.headers["Preference-Applied"]) == (202, "respond-async")
        assert answer.headers["Location"] == f"{JOBS}/{answer.json()['id']}"
    assert [each["prediction"] for each in stage.results(rows.json())] == [[2, 4, 6]] * 3
    assert stage.results(one.json())[0]["prediction"][0]["label"] == "red"


# Results are whole, however large.


@pytest.fixture(scope="module")
def large(shared_stage: Stage) -> Any:
    """A job whose results are several megabytes."""
    rows = [[i, 0.5, -1] for i in range(MANY)]
    return shared_stage.submit("?model=scale", b"".join(lines(rows)), **LINES)


def ask(path: str, method: str = "GET", *fields: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *fields, "", ""]).encode()


def test_large_results_arrive_whole(stage: Stage, large: Any) -> None:
    assert [each["prediction"] for each in stage.results(large)] == [[2 * i, 1, -2] for i in range(MANY)]


def test_large_results_leave_the_connection_fit_for_what_comes_next(stage: Stage, large: Any) -> None:
    """Or closed; what comes is one answer and no byte more."""
    whole = stage.server.get(f"{JOBS}/{large['id']}/results").body if stage.ended(large) else b""
    with stage.server.connect() as client:
        for _ in range(3):
            client.sendall(ask(f"{JOBS}/{large['id']}/results"))
            head, _, body = read_answer(client).partition(b"\r\n\r\n")
            assert body == whole
            if b"connection: close" in head.lower():
                assert client.recv(1) == b""
                return
        client.sendall(ask("/v2/health/live"))
        assert read_answer(client).endswith(b'{"live":true}')


def test_who_reads_large_results_slowly_gets_them_whole(stage: Stage, large: Any) -> None:
    """Through a small buffer, and not at all for a while."""
    whole = stage.server.get(f"{JOBS}/{large['id']}/results").body if stage.ended(large) else b""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(("127.0.0.1", stage.server.port))
        client.sendall(ask(f"{JOBS}/{large['id']}/results", "GET", "Connection: close"))
        parts = [client.recv(1000)]
        assert stage.server.get("/v2/health/live").status == 200, "others are answered"
        while part := client.recv(3000):
            parts.append(part)
    assert b"".join(parts).partition(b"\r\n\r\n")[2] == whole


def test_who_goes_away_in_the_middle_of_large_results_harms_nobody(stage: Stage, large: Any) -> None:
    stage.ended(large)
    for _ in range(5):
        with stage.server.connect() as client:
            client.sendall(ask(f"{JOBS}/{large['id']}/results"))
            assert client.recv(1000)
    assert len(stage.results(large)) == MANY


def test_head_says_how_large_they_are(stage: Stage, large: Any) -> None:
    """And nothing else: what comes next on the connection is the next answer."""
    whole = stage.server.get(f"{JOBS}/{large['id']}/results").body if stage.ended(large) else b""
    answer = stage.server.request("HEAD", f"{JOBS}/{large['id']}/results")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["Content-Length"]) == len(whole)
    with stage.server.connect() as client:
        client.sendall(ask(f"{JOBS}/{large['id']}/results", "HEAD", "Connection: close"))
        head, _, body = b"".join(iter(lambda: client.recv(1 << 16), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body == b""


# Bounds.


@pytest.mark.parametrize(("size", "status"), [(MAX_BODY + 1, 202), (MAX_JOB, 202), (MAX_JOB + 1, 413)])
def test_a_job_may_be_larger_than_a_request_for_a_prediction(stage: Stage, size: int, status: int) -> None:
    body = json.dumps({"model": "scale", "instances": [[1, 2, 3]]}).encode().ljust(size)
    answer = stage.server.post(JOBS, body)
    assert answer.status == status, answer
    if status == 413:
        assert answer.json()["detail"] == f"body: expected at most {MAX_JOB} bytes, got {size}"
    for path in ("/v1/models/scale:predict", "/v2/models/scale/infer"):
        refused = stage.server.post(path, json.dumps({"instances": [[1, 2, 3]]}).encode().ljust(size))
        assert refused.status == 413
        assert str(MAX_BODY) in refused.body.decode()


# Idempotency-Key.


def test_of_many_at_once_with_one_key_one_job_is_made(stage: Stage) -> None:
    """Whichever workers they come to: each is told of that one, or to ask again."""
    body = b"".join(lines([[1, 2, 3]] * 1000))
    answers: list[Answer] = []
    barrier = threading.Barrier(50)

    def post() -> None:
        barrier.wait(20)
        answers.append(stage.server.post(f"{JOBS}?model=scale", body, **LINES, Idempotency_Key="one-of-fifty"))

    before = len(list(stage.jobs.glob("owners/*/*-*/job.json")))
    threads = [threading.Thread(target=post) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    statuses = Counter(answer.status for answer in answers)
    assert statuses.total() == 50
    assert statuses.keys() <= {202, 409, 503}
    ids = {answer.json()["id"] for answer in answers if answer.status == 202}
    ids.add(stage.submit("?model=scale", body, **LINES, Idempotency_Key="one-of-fifty")["id"])
    assert len(ids) == 1
    assert len(list(stage.jobs.glob("owners/*/*-*/job.json"))) == before + 1
    assert len(stage.results({"id": ids.pop(), "rows": 1000})) == 1000


# Cancelling.


def test_one_that_runs_ends_soon_after_it_is_cancelled(stage: Stage) -> None:
    """With whole results of the rows that it has done."""
    job = stage.submit("?model=slow", b"".join(lines([[1, 2, 3]] * 1000)), **LINES)
    wait_until(lambda: stage.state(job)["done"], "it has begun")
    running = stage.state(job)
    assert running["status"] == "running"
    assert running["rate"] > 0
    assert running["estimated_end"] > running["started"]
    assert stage.server.get(f"{JOBS}/{job['id']}/results").status == 409
    assert stage.server.request("DELETE", f"{JOBS}/{job['id']}").status == 202
    state = stage.ended(job, seconds=10)
    assert state["status"] == "cancelled"
    assert 0 < state["done"] < 1000
    found = read_lines(stage.server.get(f"{JOBS}/{job['id']}/results").body)
    assert [each["index"] for each in found] == list(range(state["done"]))


def test_one_that_waits_or_has_ended_is_cancelled_at_once_or_not_at_all(start: Callable[[], Stage], zoo: Zoo) -> None:
    zoo.scale()
    stage = start()
    first, second = (stage.submit("?model=scale", b"[1,2,3]\n", **LINES) for _ in range(2))
    answer = stage.server.request("DELETE", f"{JOBS}/{first['id']}")
    assert (answer.status, answer.json()["status"]) == (202, "cancelled")
    with stage.worker():
        assert stage.results(second)[0]["prediction"] == [2, 4, 6]
        answer = stage.server.request("DELETE", f"{JOBS}/{second['id']}")
        assert (answer.status, answer.json()["status"]) == (202, "succeeded")
    assert stage.state(first)["status"] == "cancelled"
    assert stage.server.get(f"{JOBS}/{first['id']}/results").body == b""


# What happens meanwhile.


def test_a_job_is_taken_without_redis_and_done_once_that_is_back(start: Callable[[], Stage], zoo: Zoo) -> None:
    zoo.scale()
    stage = start()
    with stage.worker():
        stage.redis.kill()
        job = stage.submit("?model=scale", b"[1,2,3]\n", **LINES)
        assert stage.state(job)["status"] == "queued"
        stage.redis.start()
        assert stage.results(job)[0]["prediction"] == [2, 4, 6]


def test_who_stops_in_the_middle_leaves_the_rest_to_the_next(start: Callable[[], Stage], zoo: Zoo) -> None:
    """SIGTERM: no row is lost or doubled, and it was no failed attempt."""
    zoo.slow()
    stage = start()
    rows = 60
    with stage.worker() as worker:
        job = stage.submit("?model=slow", b"".join(lines([[i, i, i] for i in range(1, rows + 1)])), **LINES)
        wait_until(lambda: stage.state(job)["done"], "it has begun")
        assert worker.stop() == 0, worker.log()
        left = stage.state(job)
        assert left["status"] == "queued"
        assert 0 < left["done"] < rows
    [path] = stage.jobs.glob("owners/*/*/state.json")
    assert json.loads(path.read_text())["attempts"] == 0
    with stage.worker():
        assert [each["prediction"] for each in stage.results(job)] == [[2 * i] * 3 for i in range(1, rows + 1)]
    assert json.loads(path.read_text())["attempts"] == 1


def test_who_is_killed_in_the_middle_leaves_the_rest_to_the_next(start: Callable[[], Stage], zoo: Zoo) -> None:
    zoo.slow()
    stage = start()
    rows = 60
    with stage.worker() as worker:
        job = stage.submit("?model=slow", b"".join(lines([[i, i, i] for i in range(1, rows + 1)])), **LINES)
        wait_until(lambda: stage.state(job)["done"], "it has begun")
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait(20)
    with stage.worker():
        assert [each["prediction"] for each in stage.results(job)] == [[2 * i] * 3 for i in range(1, rows + 1)]


def test_a_job_runs_on_the_version_that_was_served_when_it_was_taken(start: Callable[[], Stage], zoo: Zoo) -> None:
    """Another is served by the time that somebody works on it."""
    zoo.scale(factor=2)
    stage = start()
    before = stage.submit("?model=scale", b"[1,2,3]\n", **LINES)
    zoo.scale(version=2, factor=3)
    assert stage.server.post("/v2/repository/models/scale/load", {}).status == 200
    after = stage.submit("?model=scale", b"[1,2,3]\n", **LINES)
    with stage.worker():
        assert stage.results(before)[0]["prediction"] == [2, 4, 6]
        assert stage.results(after)[0]["prediction"] == [3, 6, 9]
    assert [job["model"]["version"] for job in (before, after)] == ["1", "2"]


# Through the edge.


@pytest.fixture(scope="module")
def shared_front(
    repository: Path, worker_class: str, tls: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Edge, Server]]:
    folder = tmp_path_factory.mktemp("front")
    limits = {"max_body_bytes": MAX_BODY, "max_job_bytes": MAX_JOB}
    at_edge = {f"tiercel_{name}": value for name, value in limits.items()}
    with (
        RedisServer(folder) as redis,
        held(folder / "api.sock") as path,
        Server(
            repository, worker_class, listener=path, workers=1, jobs_dir=folder / "jobs", queue_url=redis.url, **limits
        ) as server,
        Edge(path, tls, folder / "run", **at_edge) as edge,
        Worker(redis.url, folder / "jobs", repository),
    ):
        yield edge, server


@pytest.mark.parametrize("path", [JOBS, f"{JOBS}/", f"{JOBS}?model=scale"])
@pytest.mark.parametrize(("size", "status"), [(MAX_BODY + 1, 202), (MAX_JOB, 202), (MAX_JOB + 1, 413)])
def test_the_edge_lets_larger_bodies_pass_to_jobs(
    shared_front: tuple[Edge, Server], path: str, size: int, status: int
) -> None:
    edge, _ = shared_front
    body = json.dumps({"model": "scale", "instances": [[1, 2, 3]]}).encode().ljust(size)
    answer = edge.post(path, body, {"Content-Type": "application/json"})
    assert answer.status == status, answer
    if status == 413:
        assert f"at most {MAX_JOB} bytes" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/models/scale:predict", "/v2/models/scale/infer", "/v1/models/jobs:predict"])
def test_and_to_nobody_else(shared_front: tuple[Edge, Server], path: str) -> None:
    edge, _ = shared_front
    answer = edge.post(path, b"{}".ljust(MAX_BODY + 1))
    assert answer.status == 413
    assert f"at most {MAX_BODY} bytes" in answer.body.decode()
    assert edge.post(f"/v1/jobs/../..{path}", b"{}".ljust(MAX_BODY + 1)).status == 413, "nor by another spelling"


def test_through_the_edge_a_job_comes_to_its_end(shared_front: tuple[Edge, Server]) -> None:
    """With results that are large."""
    edge, _ = shared_front
    rows = [[i, 0.5, -1] for i in range(MANY)]
    fields = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "through-the-edge"}
    job = edge.post(f"{JOBS}?model=scale", b"".join(lines(rows)), fields).json()
    assert edge.post(f"{JOBS}?model=scale", b"".join(lines(rows)), fields).json()["id"] == job["id"]
    path = f"{JOBS}/{job['id']}"
    wait_until(lambda: edge.get(path).json()["status"] == "succeeded", "it ends", 60)
    found = read_lines(edge.get(f"{path}/results").body)
    assert [each["prediction"] for each in found] == [[2 * i, 1, -2] for i in range(MANY)]
    assert edge.request("DELETE", path).status == 202
    assert edge.request("HEAD", f"{path}/results").status == 200
