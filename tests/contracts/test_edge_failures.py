"""What ends behind NGINX, or in it, while clients ask through it: no prediction is lost and no job is done twice."""

import http.client
import itertools
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509
from edge import FIRST_START, Edge, StandIn, make_certificate
from load import Load
from servers import Answer, Server, held, wait_until

PREDICT = "/v1/models/scale:predict"
INSTANCES = {"instances": [[1, 2, 3]]}
WORKERS = 2
# Longer than NGINX keeps an idle connection to a worker (upstream.conf), as in production.
DRAIN_SECONDS = 2.5

Start = Callable[[], Server]


@pytest.fixture
def socket_path(tmp_path: Path) -> Iterator[Path]:
    with held(tmp_path / "api.sock") as path:
        yield path


@pytest.fixture
def front(socket_path: Path, tls: Path, tmp_path: Path) -> Iterator[Edge]:
    with Edge(socket_path, tls, tmp_path / "edge") as edge:
        yield edge


@pytest.fixture
def start(models: Path, worker_class: str, socket_path: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a server that accepts from the socket, like any other that does, and that the test may do violence to."""
    names = itertools.count()
    with ExitStack() as servers:

        def start() -> Server:
            settings = {"workers": WORKERS, "drain_seconds": DRAIN_SECONDS, "state_dir": tmp_path / f"{next(names)}"}
            server = servers.enter_context(Server(models, worker_class, listener=socket_path, **settings))
            servers.callback(kill, server)  # nobody is left to be answered
            wait_until(lambda: len(server.workers()) == WORKERS, "all workers have started")
            return server

        yield start


def kill(server: Server) -> None:
    """As a container is: all of it at once."""
    if server.process.poll() is None:
        for pid in [*server.workers(), server.process.pid]:
            os.kill(pid, signal.SIGKILL)
        server.process.wait()


def go_on(load: Load, requests: int = 30) -> None:
    wanted = load.sent + requests
    wait_until(lambda: load.sent >= wanted, "more requests")


def test_a_killed_worker_costs_no_prediction(front: Edge, start: Start) -> None:
    server = start()
    with Load(front, PREDICT, INSTANCES) as load:
        for _ in range(5):
            go_on(load)
            victim = server.workers()[0]
            server.kill(victim)
            wait_until(lambda victim=victim: is_replaced(server, victim), "the worker is replaced")
        go_on(load)
    assert load.failed == {}


def test_a_reload_of_a_server_costs_no_prediction(front: Edge, start: Start) -> None:
    server = start()
    before = set(server.workers())
    with Load(front, PREDICT, INSTANCES) as load:
        go_on(load)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not before & set(server.workers()), "every worker is a new one")
        go_on(load)
    assert load.failed == {}


def test_a_server_that_is_killed_beside_another_costs_no_prediction(front: Edge, start: Start) -> None:
    start()
    victim = start()
    with Load(front, PREDICT, INSTANCES) as load:
        go_on(load)
        kill(victim)
        go_on(load, 100)
    assert load.failed == {}


def test_a_server_that_stops_beside_another_costs_no_prediction(front: Edge, start: Start) -> None:
    start()
    leaver = start()
    with Load(front, PREDICT, INSTANCES) as load:
        go_on(load)
        leaver.process.terminate()
        leaver.process.wait()
        go_on(load)
    assert load.failed == {}


def test_the_only_server_is_replaced_at_the_cost_of_no_prediction(front: Edge, start: Start) -> None:
    only = start()
    with Load(front, PREDICT, INSTANCES) as load:
        go_on(load)
        only.process.terminate()
        only.process.wait()
        start()
        go_on(load)
    assert load.failed == {}


def test_a_reload_of_nginx_costs_no_new_connection(front: Edge, start: Start) -> None:
    """One that is kept may be closed between two requests, in HTTP/1.1 at any time, and clients have to know."""
    start()
    with Load(front, PREDICT, INSTANCES, keep_alive=False) as load:
        for _ in range(2):
            go_on(load)
            before = set(front.workers())
            front.reload()
            wait_until(lambda before=before: not before & set(front.workers()), "every worker of NGINX is a new one")
        go_on(load)
    assert load.failed == {}


def test_a_new_certificate_is_presented_and_costs_no_connection(
    socket_path: Path, tmp_path: Path, start: Start
) -> None:
    tls = make_certificate(tmp_path)
    start()
    with Edge(socket_path, tls, tmp_path / "edge") as edge, Load(edge, PREDICT, INSTANCES, keep_alive=False) as load:
        go_on(load)
        old = presented(edge)
        assert told_to_prometheus(edge) == end(old)
        folders = ["--tls", str(tls), "--ca", str(tmp_path / "ca"), "--secrets", str(tmp_path / "secrets")]
        subprocess.run([sys.executable, str(FIRST_START), *folders, "--renew-certificate"], check=True)
        edge.reload()
        new = ssl.PEM_cert_to_DER_cert((tls / "server.crt").read_text())
        wait_until(lambda: presented(edge) == new, "the new certificate is presented")
        assert new != old
        assert told_to_prometheus(edge) == end(new)
        go_on(load)
    assert load.failed == {}


def told_to_prometheus(edge: Edge) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", edge.status_port, timeout=10)
    connection.request("GET", "/certificate")
    answer = Answer(connection.getresponse())
    connection.close()
    assert answer.headers["Content-Type"] == "text/plain"
    return int(answer.body.split()[-1])


def end(certificate: bytes) -> int:
    return int(x509.load_der_x509_certificate(certificate).not_valid_after_utc.timestamp())


def test_a_killed_worker_of_nginx_costs_its_own_connections_alone(front: Edge, start: Start) -> None:
    start()
    kept = front.on_each_worker()
    victim = min(kept)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in front.workers() and len(front.workers()) == len(kept), "it is replaced")
    for worker, connection in kept.items():
        if worker != victim:
            assert predict(connection).status == 200
        connection.close()
    with Load(front, PREDICT, INSTANCES, keep_alive=False) as load:
        go_on(load)
    assert load.failed == {}


# What is sent a second time, and what never is: with something in the API's place that counts.


@pytest.fixture
def counting(tls: Path, tmp_path: Path) -> Iterator[tuple[Edge, StandIn]]:
    with StandIn(tmp_path / "api.sock") as api, Edge(tmp_path / "api.sock", tls, tmp_path / "edge") as edge:
        yield edge, api


def attempts(counting: tuple[Edge, StandIn], path: str, does: str, status: int, method: str = "POST") -> int:
    """How often a request reaches the API, on a connection that NGINX has kept if it has one."""
    edge, api = counting
    connection = edge.http()
    for api.does in ("echo", does):
        api.received.clear()
        answer = predict(connection, path, method)
    connection.close()
    assert answer.status == status
    return len(api.received)


def test_a_prediction_that_nobody_answers_is_sent_once_more(counting: tuple[Edge, StandIn]) -> None:
    for path in (PREDICT, "/v2/models/scale/infer"):
        assert attempts(counting, path, "hang up", 503) == 2
        assert attempts(counting, path, "hang up", 503) == 2, "whatever happened to the one before"


def test_the_second_try_is_never_on_a_connection_that_was_kept(counting: tuple[Edge, StandIn]) -> None:
    """When a server is killed, all that were kept to it die, those of second tries too."""
    edge, api = counting
    api.does = "hang up if kept"
    connection = edge.http()
    assert [predict(connection).status for _ in range(12)] == [200] * 12
    connection.close()
    assert len(api.received) > 12, "some were kept"


def test_a_job_that_may_have_arrived_is_not_sent_again(counting: tuple[Edge, StandIn]) -> None:
    for path in ("/v1/jobs", "/v1/jobs/", "/v1//jobs", "/v1/%6aobs", "/v1/jobs?a=b", "/v1/models/../jobs"):
        assert attempts(counting, path, "hang up", 503) == 1


def test_what_was_refused_is_not_sent_again(counting: tuple[Edge, StandIn]) -> None:
    for path in (PREDICT, "/v1/jobs"):
        assert attempts(counting, path, "refuse", 503) == 1


def predict(connection: http.client.HTTPConnection, path: str = PREDICT, method: str = "POST") -> Answer:
    connection.request(method, path, json.dumps(INSTANCES))
    return Answer(connection.getresponse())


def presented(edge: Edge) -> bytes | None:
    """The certificate that a new connection is shown."""
    with edge.connect() as client:
        return client.getpeercert(binary_form=True)


def is_replaced(server: Server, victim: int) -> bool:
    workers = server.workers()
    return victim not in workers and len(workers) == WORKERS
