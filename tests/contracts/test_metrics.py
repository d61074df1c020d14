"""What several workers count is one, whichever of them is asked, and none of it is lost when they are killed."""

import http.client
import json
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Answer, Server, wait_until
from tritonclient import http as triton

PREDICT = "/v1/models/scale:predict"
INSTANCES = {"instances": [[1, 2, 3]]}
BODY = json.dumps(INSTANCES).encode()
# Takes ten seconds or more, and cannot be stopped.
HANG = json.dumps({"inputs": [{"name": "n", "datatype": "INT64", "shape": [1], "data": [9000]}]}).encode()
SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
CLIENTS, KILLS = 4, 20
# In the middle of so many a worker is killed; the others are sent while it is replaced.
ROUND = 500
# Beside those of workers that live: the lock, and the numbers of the dead.
OTHER_FILES = 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the workers of `own` count."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    return folder


@pytest.fixture
def own(models: Path, worker_class: str, folder: Path) -> Iterator[Server]:
    """A server that the test may do violence to, and that has counted nothing."""
    with Server(models, worker_class, workers=2, metrics_dir=folder) as server:
        wait_until(lambda: figure(server, "workers") == 2, "both workers have started")
        yield server


def metrics(server: Server) -> str:
    answer = server.get("/metrics")
    assert answer.status == 200, answer
    return answer.body.decode()


def figure(server: Server, name: str, **wanted: str) -> float:
    """The sum of the series of a metric that have these labels."""
    found = (SAMPLE.fullmatch(line) for line in metrics(server).splitlines())
    return sum(
        float(match[3])
        for match in found
        if match and match[1] == f"tiercel_{name}" and wanted.items() <= dict(LABEL.findall(match[2] or "")).items()
    )


def predictions(server: Server, status: str = "200") -> float:
    return figure(server, "requests_total", model="scale", status=status)


def lines(server: Server) -> list[dict[str, Any]]:
    """What requests have written; other lines may be text."""
    texts = [line for line in server.log().splitlines() if '"tiercel.request"' in line]
    found = [json.loads(line) for line in texts]
    assert {line["logger"] for line in found} <= {"tiercel.request"}
    return found


def test_the_requests_of_all_workers_are_counted(own: Server) -> None:
    """On connections of their own, so that both have some; whoever is asked says the same."""
    for _ in range(200):
        assert own.post(PREDICT, INSTANCES).status == 200
    assert own.post(PREDICT, b"{").status == 400
    assert {predictions(own) for _ in range(20)} == {200}
    assert predictions(own, "400") == 1
    wait_until(lambda: figure(own, "prediction_rows_total") == 200, "their rows are counted")
    wait_until(lambda: figure(own, "compute_infer_seconds_count") == 200, "their inferences are counted")
    assert figure(own, "worker_starts_total") == 2


def test_a_request_is_in_flight_until_it_ends(own: Server) -> None:
    """One that hangs is seen by whoever is asked, and is gone with its worker."""
    connection = own.http()
    connection.request("POST", "/v2/models/hang/infer", HANG, {"X-Request-Timeout-Ms": "3000"})
    wait_until(lambda: figure(own, "requests_in_flight") >= 1, "it is in flight")
    assert connection.getresponse().status == 504
    connection.close()
    wait_until(lambda: figure(own, "requests_in_flight") == 0, "nothing is", 10)


def test_the_text_is_valid(server: Server) -> None:
    """For Prometheus, with several workers in it; HEAD has the same head."""
    server.post(PREDICT, INSTANCES)
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=metrics(server),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert figure(server, "workers") == figure(server, "workers_planned") == 2
    assert figure(server, "ready") == 1
    head = server.request("HEAD", "/metrics")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_metrics_are_not_for_clients(server: Server) -> None:
    """What comes through a proxy is told that there is no such route."""
    assert server.get("/metrics", X_Forwarded_For="192.0.2.1").status == 404


def test_nothing_that_a_client_makes_up_is_a_label(server: Server) -> None:
    """Paths, models and methods."""
    for number in range(5):
        assert server.post(f"/v1/models/made-up-{number}:predict", INSTANCES).status == 404
        assert server.get(f"/made-up-{number}").status == 404
        server.raw(b"MADE-UP-%d / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n" % number, timeout=2)
    assert "made-up" not in metrics(server).lower()


class Clients:
    """Together they send as many requests as they are `allowed`, each once; `sent` by then."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._outcomes = [Counter[Any]() for _ in range(CLIENTS)]
        self._threads = [threading.Thread(target=self._send, args=(outcomes,)) for outcomes in self._outcomes]
        self._more = threading.Condition()
        self._allowed = self.sent = 0
        self._ended = False
        for thread in self._threads:
            thread.start()

    def allow(self, number: int) -> None:
        with self._more:
            self._allowed += number
            self._more.notify_all()

    def end(self) -> Counter[Any]:
        """What became of all that were allowed: statuses, and "broken"."""
        with self._more:
            self._ended = True
            self._more.notify_all()
        for thread in self._threads:
            thread.join()
        return sum(self._outcomes, Counter())

    def _may_send(self) -> bool:
        with self._more:
            self._more.wait_for(lambda: self.sent < self._allowed or self._ended)
            may_send = self.sent < self._allowed
            self.sent += may_send
            return may_send

    def _send(self, outcomes: Counter[Any]) -> None:
        connection = self._server.http()
        while self._may_send():
            try:
                connection.request("POST", PREDICT, BODY)
                outcomes[Answer(connection.getresponse()).status] += 1
            except (OSError, http.client.HTTPException):
                outcomes["broken"] += 1
                connection.close()
        connection.close()


def test_no_answer_is_lost_when_workers_are_killed(own: Server, folder: Path) -> None:
    """What clients got is counted; what is counted beyond are requests whose connection broke. Files stay few."""
    clients, most_files = Clients(own), 0
    try:
        for number in range(KILLS):
            clients.allow(ROUND)
            middle = number * ROUND + ROUND // 2
            wait_until(lambda middle=middle: clients.sent >= middle, "requests are sent", 60)
            victim = own.workers()[number % 2]
            own.kill(victim)
            wait_until(lambda victim=victim: _replaced(own, victim), "the worker is replaced")
            wait_until(lambda: _workers(own) == 2, "the new one counts")
            most_files = max(most_files, len(list(folder.iterdir())))
    finally:
        outcomes = clients.end()
    assert sum(outcomes.values()) == KILLS * ROUND
    answered, broken = outcomes[200], outcomes["broken"]
    assert outcomes.keys() <= {200, "broken"}
    assert answered <= predictions(own) <= answered + broken
    assert figure(own, "worker_starts_total") == 2 + KILLS
    assert most_files <= 2 + OTHER_FILES
    assert len(list(folder.glob("*.numbers"))) == 2


def test_each_request_is_a_line_once(server: Server) -> None:
    """Whichever worker had it, whole, and with what it was about."""
    wanted = {f"line-of-request-{number}" for number in range(100)}
    for request_id in wanted:
        assert server.post(PREDICT, INSTANCES, X_Request_ID=request_id).status == 200

    def found() -> Counter[str]:
        return Counter(line["request_id"] for line in lines(server) if line["request_id"] in wanted)

    wait_until(lambda: len(found()) == len(wanted), "all lines are written")
    assert set(found().values()) == {1}
    [line] = [line for line in lines(server) if line["request_id"] == "line-of-request-7"]
    about = {"method": "POST", "route": "/v1/models/{model}:predict", "status": 200, "model": "scale", "rows": 1}
    assert about.items() <= line.items()


def test_statistics_as_tritonclient_reads_them(own: Server) -> None:
    """Of all workers together."""
    values = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    given = triton.InferInput("x", [2, 3], "FP32")
    given.set_data_from_numpy(values)
    with triton.InferenceServerClient(f"127.0.0.1:{own.port}") as client:
        for _ in range(50):
            client.infer("scale", [given])

        def found() -> Any:
            [statistics] = client.get_inference_statistics("scale", "1")["model_stats"]
            return statistics

        wait_until(lambda: found()["inference_count"] == 100, "all rows are counted")
        assert found()["execution_count"] == 50
        assert found()["inference_stats"]["success"]["count"] == 50
        assert found()["inference_stats"]["compute_infer"]["ns"] > 0
        names = {each["name"] for each in client.get_inference_statistics()["model_stats"]}
        assert {"scale", "mixed", "half"} <= names


def _replaced(server: Server, victim: int) -> bool:
    workers = server.workers()
    return victim not in workers and len(workers) == 2


def _workers(server: Server) -> float:
    """How many count; none if the one that was asked is killed."""
    with suppress(OSError, http.client.HTTPException):
        return figure(server, "workers")
    return 0
