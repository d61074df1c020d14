"""The llhttp worker's loop, turn by turn, over real sockets; tests/contracts has it as a server."""

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from servers import read_answer, wait_until

from inference_api.admission import Admission
from inference_api.workers.connection import Connection, Limits, Request
from inference_api.workers.llhttp import KEEP_WITHIN_SECONDS, READ_BYTES, LlhttpWorker

REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


class Log:
    """Remembers what was logged as an exception."""

    def __init__(self) -> None:
        self.exceptions: list[str] = []

    def exception(self, text: str) -> None:
        self.exceptions.append(text)


class Loop:
    """A worker with `app`, whose clock stands still unless a test moves it."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.worker = LlhttpWorker.__new__(LlhttpWorker)
        self.worker.sockets = [self.listener]
        self.worker.cfg = SimpleNamespace(keepalive=75, worker_connections=100, workers=1, graceful_timeout=30)
        self.worker.PIPE = os.pipe()
        os.set_blocking(self.worker.PIPE[0], False)
        self.worker.log = Log()
        self.worker.alive = True
        self.worker.ppid = os.getppid()
        self.worker.notify = lambda: None
        self.worker.wsgi = app
        self.worker._prepare()

    def turn(self, count: int = 5) -> None:
        for _ in range(count):
            os.write(self.worker.PIPE[1], b".")  # so that no turn waits
            self.worker._turn()

    def late(self) -> None:
        """Look at the connections as if all their time had passed."""
        for connection in self.worker._connections.values():
            connection.deadline = 0
        self.worker._ended(self.worker._now)

    def connect(self, data: bytes) -> socket.socket:
        client = socket.create_connection(self.listener.getsockname(), 5)
        client.sendall(data)
        return client

    @property
    def connections(self) -> int:
        return len(self.worker._connections)


@pytest.fixture
def loop() -> Iterator[Callable[[Callable[..., Iterable[bytes]]], Loop]]:
    loops: list[Loop] = []

    def make(app: Callable[..., Iterable[bytes]]) -> Loop:
        loops.append(Loop(app))
        return loops[-1]

    yield make
    for made in loops:
        for connection in list(made.worker._connections.values()):
            made.worker._close(connection)
        made.worker._epoll.close()
        made.listener.close()
        for fd in made.worker.PIPE:
            os.close(fd)


def app_of(*chunks: bytes) -> Callable[..., Iterable[bytes]]:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return iter(chunks) if len(chunks) > 1 else list(chunks)

    return app


def received(client: socket.socket) -> bytes:
    client.setblocking(False)
    data = b""
    try:
        while part := client.recv(1 << 16):
            data += part
    except BlockingIOError:
        pass
    client.setblocking(True)
    return data


def test_an_empty_chunk_in_the_middle_of_a_stream_is_not_its_end(loop: Any) -> None:
    made = loop(app_of(b"first", b"", b"last"))
    with made.connect(REQUEST) as client:
        made.turn(10)
        assert received(client).endswith(b"5\r\nfirst\r\n4\r\nlast\r\n0\r\n\r\n")


def test_a_stream_that_fails_half_way_ends_the_connection_unfinished(loop: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])

        def chunks() -> Iterator[bytes]:
            yield b"first"
            raise RuntimeError

        return chunks()

    made = loop(app)
    with made.connect(REQUEST) as client:
        made.turn(10)
        assert not received(client).endswith(b"0\r\n\r\n")
    assert made.connections == 0
    assert len(made.worker.log.exceptions) == 1


def test_a_client_that_reads_too_slowly_is_dropped_rather_than_sent_another_answer(loop: Any) -> None:
    """Also when it has begun to send another request meanwhile."""
    made = loop(app_of(b"x" * (32 << 20)))
    with made.connect(REQUEST + b"GET / HT") as client:
        made.turn()
        assert made.connections == 1
        made.late()
        assert made.connections == 0
        assert b"408" not in received(client)


def test_a_request_that_is_late_gets_408(loop: Any) -> None:
    made = loop(app_of(b""))
    with made.connect(b"GET / HT") as client:
        made.turn()
        made.late()
        assert read_answer(client).startswith(b"HTTP/1.1 408")


def test_a_connection_that_is_late_while_its_requests_wait_is_forgotten(loop: Any) -> None:
    made = loop(app_of(b"body"))
    with made.connect(REQUEST * 10):
        made.turn(2)
        assert made.connections == 1
        made.late()
        made.turn(20)
        assert made.connections == 0


def test_a_client_that_has_gone_when_it_was_refused_harms_nobody(loop: Any) -> None:
    made = loop(app_of(b"body"))
    for _ in range(20):
        client = made.connect(b"nonsense\r\n\r\n")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()  # with a reset
        made.turn()
    made.late()
    assert made.connections == 0


def test_an_idle_connection_is_kept_for_its_time_and_then_closed(loop: Any) -> None:
    made = loop(app_of(b"body"))
    with made.connect(REQUEST) as client:
        made.turn()
        assert read_answer(client).endswith(b"body")
        [connection] = made.worker._connections.values()
        assert connection.deadline == pytest.approx(time.monotonic() + 75, abs=5)
        made.late()
        assert client.recv(1) == b""


def test_no_more_connections_are_taken_than_there_is_room_for(loop: Any) -> None:
    """Those beyond wait, and come in as soon as one has gone."""
    made = loop(app_of(b"body"))
    made.worker.cfg.worker_connections = 3
    clients = [made.connect(b"GET / HT") for _ in range(3)] + [made.connect(REQUEST)]
    made.turn(20)
    assert made.connections == 3
    assert received(clients[3]) == b""
    clients[0].close()
    made.worker._listen_from = 0
    made.turn(20)
    assert received(clients[3]).endswith(b"body")
    for client in clients:
        client.close()


def test_the_connection_that_was_idle_for_the_longest_makes_room(loop: Any) -> None:
    made = loop(app_of(b"body"))
    made.worker.cfg.worker_connections = 3
    clients = []
    for _ in range(4):
        clients.append(made.connect(REQUEST))
        made.turn()
        assert read_answer(clients[-1]).endswith(b"body")
    assert made.connections == 3
    assert clients[0].recv(1) == b"", "the first was closed"
    clients[1].sendall(REQUEST)
    made.turn()
    assert read_answer(clients[1]).endswith(b"body")
    for client in clients:
        client.close()


def test_a_long_turn_is_no_hang(loop: Any) -> None:
    """The heartbeat goes on between the requests of one turn."""
    beats: list[float] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        made.worker._next_beat = 0  # as if it had taken a second
        return app_of(b"body")(environ, start_response)

    made = loop(app)
    made.worker.notify = lambda: beats.append(time.monotonic())
    clients = [made.connect(REQUEST) for _ in range(5)]
    made.turn(10)
    assert len(beats) >= 5
    for client in clients:
        client.close()


def test_requests_that_wait_for_us_are_not_late(loop: Any) -> None:
    made = loop(app_of(b"body"))
    with made.connect(REQUEST * 10) as client:
        made.turn(2)
        made.worker._now += 1000
        made.worker._next_tick = 0
        made.worker._ended(made.worker._now)
        made.turn(20)
        assert received(client).count(b"200 OK") == 10


def test_a_fault_in_parsing_costs_its_connection_only(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = loop(app_of(b"body"))

    def fail(self: Connection, data: bytes, now: float) -> None:
        raise RuntimeError

    with made.connect(b"") as other:
        with monkeypatch.context() as patch, made.connect(REQUEST) as client:
            patch.setattr(Connection, "feed", fail)
            made.turn()
            assert client.recv(1) == b""
        other.sendall(REQUEST)
        made.turn()
        assert received(other).endswith(b"body")
    assert len(made.worker.log.exceptions) == 1


def busy_for(seconds: float) -> Callable[..., Iterable[bytes]]:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass
        start_response("200 OK", [])
        return [b"body"]

    return app


def test_the_connection_of_a_slow_answer_is_not_kept(loop: Any) -> None:
    """The next request on it could only go to this worker, though another may be idle."""
    made = loop(busy_for(2 * KEEP_WITHIN_SECONDS))
    with made.connect(REQUEST) as client:
        made.turn()
        answer = received(client)
        assert b"Connection: close" in answer
        assert client.recv(1) == b""


def test_requests_that_were_sent_together_are_all_answered_however_slowly(loop: Any) -> None:
    made = loop(busy_for(2 * KEEP_WITHIN_SECONDS))
    with made.connect(3 * REQUEST) as client:
        made.turn()
        assert received(client).count(b"HTTP/1.1 200") == 3


def test_a_worker_that_drains_takes_new_connections_but_keeps_none(loop: Any) -> None:
    """Until whoever sends them knows better, or a successor has started, nobody else may be there to take them."""
    made = loop(app_of(b"body"))
    made.worker._drain_seconds = 4
    made.worker.alive = False
    assert not made.worker._ended(made.worker._now)
    with made.connect(REQUEST) as client:
        made.turn()
        assert b"Connection: close" in received(client)
    assert made.connections == 0


def test_a_worker_that_has_drained_takes_no_more_and_ends(loop: Any) -> None:
    made = loop(app_of(b"body"))
    made.worker._drain_seconds = 4
    made.worker.alive = False
    now = made.worker._now
    assert not made.worker._ended(now)
    assert not made.worker._ended(now + 5), "it looks once more at what it has"
    with made.connect(REQUEST) as client:
        made.turn()
        assert made.connections == 0
        assert received(client) == b""
    assert made.worker._ended(now + 10)


def test_a_worker_that_has_drained_waits_for_a_request_that_is_arriving(loop: Any) -> None:
    made = loop(app_of(b"body"))
    made.worker._drain_seconds = 4
    with made.connect(REQUEST[:-2]) as client:
        made.turn()
        made.worker.alive = False
        now = made.worker._now
        assert not any(made.worker._ended(now + seconds) for seconds in (0, 5, 7))
        client.sendall(b"\r\n")
        made.turn()
        assert received(client).endswith(b"body")
    assert made.worker._ended(now + 9)


REFUSED = b"HTTP/1.1 503 Service Unavailable"


def overloaded(loop: Any, app: Callable[..., Iterable[bytes]], seconds: float = 0.01) -> Loop:
    """A worker whose queue is long, with room for five: a request takes `seconds`, and may wait for five times that."""
    made = loop(app)
    made.worker._admission = Admission(5 * seconds)
    for _ in range(500):
        made.worker._admission.served(seconds * 1.0001)
    made.worker._admission.served = lambda seconds: None
    made.worker._is_late = True
    made.worker._serve_waiting = lambda: None  # until the test lets them have their turn
    return made


def a_turn(made: Loop) -> None:
    del made.worker._serve_waiting
    made.worker._serve_waiting()
    made.worker._serve_waiting = lambda: None


def test_once_the_queue_is_long_what_has_no_room_is_refused_at_once(loop: Any) -> None:
    """At the maximum none, and from then on each; those within are answered in their order."""
    order: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        order.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return [b"body"]

    made = overloaded(loop, app)
    clients = [made.connect(b"GET /%d HTTP/1.1\r\nHost: test\r\n\r\n" % i) for i in range(7)]
    made.turn(10)
    answers = [received(client) for client in clients]
    assert answers[:5] == [b""] * 5
    assert [answer[: len(REFUSED)] for answer in answers[5:]] == [REFUSED] * 2
    assert all(b"\r\nRetry-After: 1\r\n" in answer for answer in answers[5:])
    for client in clients[:5]:
        a_turn(made)
        assert received(client).endswith(b"body")
    assert order == ["/0", "/1", "/2", "/3", "/4"]
    for client in clients:
        client.close()


def test_who_has_time_comes_after_who_has_not_and_has_less_room(loop: Any) -> None:
    made = overloaded(loop, app_of(b"body"))
    background = [made.connect(b"GET / HTTP/1.1\r\nHost: test\r\nPriority: u=7\r\n\r\n") for _ in range(4)]
    made.turn(10)
    assert [received(client)[:12] for client in background] == [b"", b"", b"", b"HTTP/1.1 503"]
    with made.connect(REQUEST) as interactive:
        made.turn(10)
        a_turn(made)
        assert received(interactive).endswith(b"body")
        assert received(background[0]) == b""
        a_turn(made)
        assert received(background[0]).endswith(b"body")
    for client in background:
        client.close()


def test_who_has_waited_for_too_long_already_is_refused(loop: Any) -> None:
    made = overloaded(loop, app_of(b"body"))
    with made.connect(b"GET / HTTP/1.1\r\nHost: test\r\nX-Request-Start: t=%.3f\r\n\r\n" % (time.time() - 1)) as client:
        made.turn()
        assert received(client).startswith(REFUSED)


def test_who_has_gone_is_not_computed_for(loop: Any) -> None:
    called: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        called.append(1)
        start_response("200 OK", [])
        return [b"body"]

    made = overloaded(loop, app)
    gone, stays = made.connect(REQUEST), made.connect(REQUEST)
    made.turn(10)
    gone.close()
    a_turn(made)
    assert received(stays).endswith(b"body")
    assert called == [1]
    stays.close()


def test_health_is_answered_whatever_waits(loop: Any) -> None:
    made = overloaded(loop, app_of(b"body"))
    clients = [made.connect(REQUEST) for _ in range(6)]
    with made.connect(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n") as health:
        made.turn(10)
        assert received(health).endswith(b"body")
    for client in clients:
        client.close()


def test_a_queue_that_is_empty_is_no_longer_long(loop: Any) -> None:
    made = overloaded(loop, app_of(b"body"))
    with made.connect(REQUEST) as client:
        made.turn()
        a_turn(made)
        assert received(client).endswith(b"body")
        assert made.worker._is_late
    a_turn(made)
    assert not made.worker._is_late


def test_a_queue_is_long_once_requests_wait_though_the_worker_never_rests(loop: Any) -> None:
    made = loop(app_of(b"body"))
    old = b"GET / HTTP/1.1\r\nHost: test\r\nX-Request-Start: t=%.3f\r\n\r\n" % (time.time() - 1)
    with made.connect(old) as client:
        made.turn()
        assert received(client).endswith(b"body")
        assert not made.worker._is_late, "it has only just begun to be busy"
    made.worker._idle_at = made.worker._now - 1
    made.worker._serve_waiting = lambda: None
    with made.connect(old) as client:
        made.turn()
        assert received(client).endswith(b"body")
        assert made.worker._is_late


def test_a_long_queue_at_the_socket_is_cut_before_one_of_it_is_served(loop: Any) -> None:
    """Through NGINX, whoever was served slowly comes on a new connection: all that waits, waits there."""
    made = loop(app_of(b"body"))
    late, too_late = (
        b"GET / HTTP/1.1\r\nHost: test\r\nX-Request-Start: t=%.3f\r\n\r\n" % (time.time() - seconds)
        for seconds in (0.4, 1)
    )
    made.worker._idle_at = made.worker._now - 1
    with made.connect(late) as client:
        made.turn(1)
        assert received(client).endswith(b"body")
    clients = [made.connect(too_late) for _ in range(3)]
    made.turn(1)
    assert [received(client)[: len(REFUSED)] for client in clients] == [REFUSED] * 3
    for client in clients:
        client.close()


def test_without_nginx_the_kernel_knows_how_long_a_request_has_waited() -> None:
    """On a unix socket nobody does, and nobody waits there without NGINX."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            connection = Connection(accepted, {}, Limits(1, 1), 0)
            client.sendall(b"x")
            wait_until(lambda: connection.age(Request({}, keep_alive=True)) > 0.1, "it grows")
            client.sendall(b"x")
            wait_until(lambda: connection.age(Request({}, keep_alive=True)) < 0.1, "it begins anew")
            assert connection.age(Request({"HTTP_X_REQUEST_START": "t=0"}, keep_alive=True)) > 1e9
    here, there = socket.socketpair()
    with here, there:
        assert Connection(here, {}, Limits(1, 1), 0).age(Request({}, keep_alive=True)) == 0


def test_a_busy_connection_is_read_no_further(loop: Any) -> None:
    """Requests that come in one piece with the begin of the next are answered once each, and in their order."""
    made = overloaded(loop, app_of(b"body"))
    begin = b"GET /b HTTP/1.1\r\nHost: test\r\nX: "
    first = b"GET /a HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"
    body = READ_BYTES - len(begin) - len(first % 65000)
    with made.connect(first % body + bytes(body) + begin + b"y\r\n\r\n") as client:
        made.turn(10)
        for _ in range(2):
            a_turn(made)
            made.turn(3)
            a_turn(made)
        answers = received(client)
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert made.worker.log.exceptions == []
