"""Workers come and go, and whoever has nothing to do with the one that goes does not notice."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from load import Load
from servers import Server, read_answer, wait_until

PREDICT = "/v1/models/scale:predict"
INSTANCES = {"instances": [[1, 2, 3]]}
ENDLESS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
# A product of two matrices of this size takes seconds, and ONNX Runtime cannot stop in the middle of it. Filling them
# takes some tenths of a second, after which it could: the deadline must lie behind that.
HANG = {"inputs": [{"name": "n", "datatype": "INT64", "shape": [1], "data": [9000]}]}


@pytest.fixture
def start(models: Path, worker_class: str) -> Iterator[Callable[..., Server]]:
    """Start a server that the test may do violence to."""
    servers = []

    def start(**settings: Any) -> Server:
        server = Server(models, worker_class, workers=2, **settings)
        servers.append(server.__enter__())
        wait_until(lambda: len(server.workers()) == 2, "both workers have started")
        return server

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def test_a_killed_worker_is_replaced_and_the_server_lives_on(start: Callable[..., Server]) -> None:
    server = start()
    for _ in range(3):
        victim = server.workers()[0]
        server.kill(victim)
        wait_until(lambda victim=victim: _replaced(server, victim), "the worker is replaced")
        wait_until(server.is_ready, "the server is ready again")
        for _ in range(10):
            assert server.post(PREDICT, INSTANCES).status == 200


def test_a_kill_under_load_costs_at_most_the_requests_of_that_worker(start: Callable[..., Server]) -> None:
    server = start()
    with Load(server, PREDICT, INSTANCES) as load:
        wait_until(lambda: load.sent > 50, "some requests")
        server.kill(server.workers()[0])
        wait_until(lambda: load.sent > 200, "more requests")
    # Each client has one connection and may lose the request that is on it; NGINX sends such a one again elsewhere.
    assert sum(load.failed.values()) <= 4
    assert set(load.failed) <= {"RemoteDisconnected", "ConnectionResetError", "BrokenPipeError"}


def test_a_reload_under_load_fails_no_request(start: Callable[..., Server]) -> None:
    server = start(drain_seconds=2)
    before = set(server.workers())
    with Load(server, PREDICT, INSTANCES) as load:
        wait_until(lambda: load.sent > 50, "some requests")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not before & set(server.workers()), "every worker is a new one")
        wait_until(lambda: load.sent > 300, "more requests")
    assert load.failed == {}


def test_what_is_being_served_at_sigterm_is_answered(start: Callable[..., Server]) -> None:
    server = start(request_timeout_ms=1500)
    with server.connect() as client:
        body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}'
        client.sendall(
            b"POST /v2/models/endless/infer HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        wait_until(lambda: any(_cpu_ticks(pid) > 20 for pid in server.workers()), "the inference runs")
        server.process.terminate()
        assert read_answer(client).startswith(b"HTTP/1.1 504")
    server.process.wait(20)


def test_a_deadline_is_kept_by_an_inference_that_can_be_stopped(start: Callable[..., Server]) -> None:
    server = start(request_timeout_ms=300)
    before = server.workers()
    answer = server.post("/v2/models/endless/infer", ENDLESS)
    assert (answer.status, answer.json()) == (504, {"error": "model endless: stopped at the deadline"})
    short = server.post("/v2/models/endless/infer", ENDLESS, X_Request_Timeout_Ms="100")
    assert short.status == 504
    assert server.workers() == before


def test_a_hung_inference_gets_504_and_its_worker_is_replaced(start: Callable[..., Server]) -> None:
    server = start(request_timeout_ms=1000, hang_grace_ms=300)
    before = set(server.workers())
    answer = server.post("/v2/models/hang/infer", HANG)
    assert (answer.status, answer.json()) == (504, {"error": "the inference did not end by its deadline"})
    wait_until(lambda: len(set(server.workers()) - before) == 1, "one worker is a new one")
    assert len(set(server.workers()) & before) == 1, "the other worker is still the same"
    assert "inference hangs" in server.log()
    assert "in run" in server.log(), "the stacks of the hung process are in the log"
    for _ in range(10):
        assert server.post(PREDICT, INSTANCES).status == 200


def test_others_are_served_while_an_inference_hangs(start: Callable[..., Server], worker_class: str) -> None:
    server = start(request_timeout_ms=1500, hang_grace_ms=300)
    with server.connect() as client:
        body = b'{"inputs":[{"name":"n","datatype":"INT64","shape":[1],"data":[9000]}]}'
        client.sendall(
            b"POST /v2/models/hang/infer HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        wait_until(lambda: any(_cpu_ticks(pid) > 20 for pid in server.workers()), "the inference runs")
        statuses = [server.post(PREDICT, INSTANCES).status for _ in range(20)]
        assert read_answer(client).startswith(b"HTTP/1.1 504")
    # gthread takes connections while it is busy: those that it took wait for the inference, and are told so in the end.
    expected = {200, 503, 504} if worker_class == "gthread" else {200}
    assert set(statuses) <= expected


def test_workers_end_with_the_arbiter(start: Callable[..., Server]) -> None:
    server = start()
    workers = server.workers()
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "no worker is left behind")


def _replaced(server: Server, victim: int) -> bool:
    workers = server.workers()
    return victim not in workers and len(workers) == 2


def _cpu_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
