"""What real servers say of themselves: JSON of one form, line by line, and nothing that a client sent in confidence."""

import base64
import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from batch import Worker, zipped
from edge import Edge
from model_zoo import Zoo
from redis_server import RedisServer
from servers import Server, fetch_token, held, wait_until
from tokens import issuer_folder

HEAD = ["timestamp", "level", "logger", "event", "service"]
CANARY, NUMBER = "c4n4ry", 31415926535
# As what asks for a token, and as what a token may look like.
BASIC = base64.b64encode(f"{CANARY}:{CANARY}".encode()).decode()
TOKEN = f"eyJhbGciOiJFUzI1NiJ9.{base64.b64encode(CANARY.encode()).decode()}.{CANARY}"
IN_CONFIDENCE = (CANARY, BASIC, TOKEN, *TOKEN.split(".")[:2])
LINES = "application/x-ndjson"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Stage:
    """NGINX, a server that wants tokens, and a batch worker; they log into files."""

    def __init__(self, folder: Path, tls: Path, worker_class: str) -> None:
        zoo = Zoo(folder / "models")
        zoo.scale()
        zoo.gather()
        zoo.colour()
        self.secret = issuer_folder(folder / "issuer", app=("predict", "jobs"))["app"]
        self.redis = RedisServer(folder)
        self.edge = Edge(folder / "api.sock", tls, folder / "run")
        jobs = {"queue_url": self.redis.url, "jobs_dir": folder / "jobs"}
        access = {
            "auth": "required",
            "auth_dir": folder / "issuer",
            "auth_issuer": f"https://localhost:{self.edge.port}",
        }
        self.server = Server(
            zoo.root, worker_class, listener=folder / "api.sock", workers=2, max_body_bytes=1 << 20, **access, **jobs
        )
        self.worker = Worker(self.redis.url, folder / "jobs", zoo.root)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.edge.request(method, path, body or None, fields)
        self.server.request(method, path, body or None, headers)
        return answer

    def lines(self) -> list[dict[str, Any]]:
        """All that server and worker have said, on either output."""
        return [json.loads(line) for log in (self.server.log(), self.worker.log()) for line in log.splitlines()]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tls: Path, worker_class: str) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("logs")
    (folder / "models").mkdir()
    stage = Stage(folder, tls, worker_class)
    with ExitStack() as running:
        for each in (stage.redis, held(folder / "api.sock"), stage.server, stage.worker, stage.edge):
            running.enter_context(each)
        wait_until(lambda: len(stage.server.workers()) == 2, "both workers have started")
        yield stage


def test_every_line_is_json_of_one_form(stage: Stage) -> None:
    """Those of Gunicorn and RQ as well, when jobs run, all are reloaded, and a worker is killed."""
    bearer = f"Bearer {fetch_token(stage.edge.http(), 'app', stage.secret)}"
    answer = stage.ask("POST", "/v1/jobs?model=scale", b"[1,2,3]\n[1]\n", Authorization=bearer, Content_Type=LINES)
    assert answer.status == 202, answer
    job = f"/v1/jobs/{answer.json()['id']}"
    wait_until(
        lambda: stage.edge.get(job, {"Authorization": bearer}).json()["status"] == "succeeded", "the job is done"
    )
    wait_until(lambda: "job ended" in stage.worker.log(), "the worker has said so")
    before = set(stage.server.workers())
    stage.server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(set(stage.server.workers()) - before) == len(stage.server.workers()) == 2, "all are new")
    wait_until(stage.server.is_ready, "they answer")
    killed = stage.server.workers()[0]
    stage.server.kill(killed)
    wait_until(lambda: killed not in (left := stage.server.workers()) and len(left) == 2, "there is another one")
    wait_until(lambda: "SIGKILL" in stage.server.log(), "Gunicorn has said so")
    lines = stage.lines()
    assert {tuple(list(line)[:5]) for line in lines} == {tuple(HEAD)}
    assert {line["service"] for line in lines} == {"api", "worker"}
    assert {"gunicorn.error", "rq.worker", "tiercel"} <= {line["logger"] for line in lines}
    events = {line["event"] for line in lines}
    assert {"token issued", "job ended"} <= events
    assert any("SIGKILL" in event for event in events)
    assert all(line["timestamp"].endswith("Z") and line["level"].islower() for line in lines)


def test_nothing_that_was_sent_in_confidence_is_in_a_log(stage: Stage) -> None:
    """Neither of NGINX, nor of a server that is asked past it, nor of the batch worker; whatever goes wrong."""
    bearer = f"Bearer {fetch_token(stage.edge.http(), 'app', stage.secret)}"
    query = f"?access_token={TOKEN}&note={CANARY}"
    rows = json.dumps({"instances": [[CANARY, 2, 3]]}).encode()
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [CANARY, 2, 3]}
    photos = zipped({"a.png": CANARY.encode()})
    predict, infer, token = "/v1/models/scale:predict", "/v2/models/scale/infer", "/oauth2/token"
    seen = set()
    for path, body, headers in (
        (predict, rows, {"Authorization": f"Bearer {TOKEN}"}),
        (predict, rows, {"Authorization": f"Bearer {CANARY}"}),
        (predict, rows, {"Authorization": f"Basic {BASIC}"}),
        (predict, rows, {"Authorization": CANARY}),
        (predict + query, rows, {"Authorization": bearer}),
        (predict, rows, {"Authorization": bearer, "Cookie": f"session={CANARY}"}),
        (predict, f"{{{CANARY}".encode(), {"Authorization": bearer}),
        (predict, b"[" * 99 + CANARY.encode(), {"Authorization": bearer}),
        (predict, CANARY.encode(), {"Authorization": bearer, "Content-Type": "image/png"}),
        (predict, CANARY.encode(), {"Authorization": bearer, "Content-Encoding": "gzip"}),
        (predict, rows, {"Authorization": bearer, "X-Request-ID": f"{CANARY} {CANARY}", "traceparent": CANARY}),
        (predict, rows, {"Authorization": bearer, "X-Request-Timeout-Ms": CANARY}),
        (predict, rows, {"Authorization": bearer, "Content-Type": f"{CANARY}/{CANARY}"}),
        ("/v1/models/colour:predict", CANARY.encode(), {"Authorization": bearer, "Content-Type": "image/png"}),
        ("/v1/models/gather:predict", b'{"instances": [%d]}' % NUMBER, {"Authorization": bearer}),
        ("/nowhere" + query, rows, {"Authorization": bearer}),
        ("/v1/%2561" + query, rows, {"Authorization": bearer}),
        ("/v1/models/scale/versions/2:predict", rows, {"Authorization": bearer}),
        ("/v2/repository/models/scale/load", rows, {"Authorization": bearer}),
        (infer, json.dumps({"inputs": [tensor]}).encode(), {"Authorization": bearer}),
        (infer, CANARY.encode(), {"Authorization": bearer, "Inference-Header-Content-Length": CANARY}),
        (infer, CANARY.encode() * (1 << 18), {"Authorization": bearer}),
        (token, b"grant_type=client_credentials", FORM | {"Authorization": f"Basic {BASIC}"}),
        (token, f"grant_type=client_credentials&client_id={CANARY}&client_secret={CANARY}".encode(), FORM),
        (token, f"grant_type={CANARY}&client_id=app&client_secret={CANARY}".encode(), FORM),
        (token, CANARY.encode(), {"Content-Type": "application/json"}),
        ("/v1/jobs?model=scale", rows, {"Authorization": bearer, "Content-Type": "application/x-ndjson"}),
        ("/v1/jobs?model=colour", photos, {"Authorization": bearer, "Content-Type": "application/zip"}),
        ("/v1/jobs?model=scale", rows, {"Authorization": bearer, "Idempotency-Key": CANARY}),
        ("/v1/jobs?model=scale" + query.replace("?", "&"), rows, {"Authorization": bearer}),
    ):
        fields = {name.replace("-", "_"): value for name, value in headers.items()}
        seen.add(stage.ask("POST", path, body, **fields).status)
    assert seen >= {400, 401, 403, 404, 413, 415}, seen
    for line in (
        f"Authorization Bearer {CANARY}",
        f"Authorization: Bearer {CANARY}\x01",
        f"Authorization : {CANARY}",
        f"Content-Length: {CANARY}",
        f"Transfer-Encoding: {CANARY}",
        f"Expect: {CANARY}",
    ):
        request = f"POST {predict}{query} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{line}\r\n\r\n".encode("latin-1")
        stage.edge.raw(request, timeout=2)
        stage.server.raw(request, timeout=2)
    for method, path in (("GET", "/v1/jobs"), ("PURGE", f"/v1/models{query}")):
        stage.ask(method, path, Authorization=bearer, X_Request_ID="the-last-of-all")
    wait_until(lambda: "the-last-of-all" in stage.edge.log(), "NGINX has written its lines")
    finished = stage.edge.get("/v1/jobs", {"Authorization": bearer}).json()
    assert finished["jobs"]
    wait_until(lambda: stage.worker.log().count("job ended") >= 2, "the worker has seen the rows")
    for log in (stage.edge.log(), stage.server.log(), stage.worker.log()):
        assert [secret for secret in (*IN_CONFIDENCE, str(NUMBER), stage.secret, bearer) if secret in log] == []


def test_what_nginx_refuses_or_fails_at_is_in_its_log_without_the_query(tls: Path, tmp_path: Path) -> None:
    """In JSON, with the reason; nobody is there who would answer, and one request a second is too many for who asks."""
    with Edge(tmp_path / "nobody.sock", tls, tmp_path, edge_requests_per_second=1) as edge:
        headers = {"X-Request-ID": "over-the-limit"}
        wait_until(lambda: edge.get(f"/v1/a?b={CANARY}", headers).status == 429, "the limit is reached")
        wait_until(
            lambda: {line["limit_requests"] for line in edge.access_log("over-the-limit")} == {"PASSED", "REJECTED"},
            "the log says so",
        )
        log = edge.log()
    levels = {line["status"]: (line["level"], line["upstream_status"]) for line in edge.access_log("over-the-limit")}
    assert levels == {503: ("error", "502 : 502"), 429: ("info", "")}
    assert CANARY not in log
    assert all(line.startswith("{") for line in log.splitlines())
