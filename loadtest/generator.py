"""A closed-loop HTTP/1.1 load generator: every connection sends its next request once it has its answer.

It shares the CPUs with what it measures, so it is lean: one thread, epoll, requests made beforehand, answers delimited
by Content-Length. Every answer is checked all the same: a body is compared in full the first time that it is seen,
and recognised by its bytes from then on.
"""

import gc
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Self

RECEIVE_BYTES = 64 << 10
# A server that is silent for so long is taken to be stuck.
SILENCE_SECONDS = 10.0
HEAD_END = b"\r\n\r\n"
LENGTH = b"\r\ncontent-length:"


class Stalled(Exception):
    """No answer came within SILENCE_SECONDS."""


@dataclass(frozen=True)
class Exchange:
    """A whole request, and what is wrong with the body of an answer to it (None: nothing)."""

    request: bytes
    fault: Callable[[bytes], str | None]
    accepted: set[bytes] = field(default_factory=set)


@dataclass
class Outcome:
    """`latencies` in seconds: of the right answers that came in time; `completed` counts the late ones too."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    completed: int = 0
    errors: int = 0
    first_error: str = ""
    # CPU time of the generator itself.
    cpu_seconds: float = 0.0

    def error(self, what: str, count: int = 1) -> None:
        self.errors += count
        self.first_error = self.first_error or what

    def with_errors_of(self, before: "Outcome") -> "Outcome":
        if before.errors:
            self.error(before.first_error, before.errors)
        return self


NOTHING = Exchange(b"", lambda body: f"expected no answer without a request, got {body!r}")


class Connection:
    __slots__ = ("exchange", "received", "sent_at", "socket", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.exchange = NOTHING
        self.sent_at = 0.0
        self.unsent = memoryview(b"")
        self.received = b""


class Load:
    """`with Load(...) as load: load.run(seconds)`: the connections stay open from one run to the next."""

    def __init__(self, address: tuple[str, int], exchanges: Sequence[Exchange], connections: int) -> None:
        self._address = address
        self._exchanges = cycle(exchanges)
        self._count = connections
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections.values():
            connection.socket.close()
        self._epoll.close()

    def run(self, seconds: float) -> Outcome:
        """Keep all connections busy for `seconds`, then wait for the answers that are still to come."""
        outcome = Outcome(seconds)
        with _no_collections():
            cpu = time.process_time()
            deadline = time.perf_counter() + seconds
            for connection in self._open_connections():
                self._send_next(connection)
            self._loop(deadline, outcome)
            outcome.cpu_seconds = time.process_time() - cpu
        return outcome

    def _open_connections(self) -> Iterator[Connection]:
        """Those of the run before, or new ones: made one by one, as a request on the one before keeps its worker busy.

        Among idle workers the kernel wakes the same one each time, which would then have all the connections.
        """
        yield from list(self._connections.values())
        while len(self._connections) < self._count:
            yield self._connect()

    def _loop(self, deadline: float, outcome: Outcome) -> None:
        waiting = len(self._connections)
        while waiting:
            events = self._epoll.poll(SILENCE_SECONDS)
            if not events:
                raise Stalled(f"{waiting} connections got no answer within {SILENCE_SECONDS:g} s")
            for fd, event in events:
                connection = self._connections[fd]
                if event & select.EPOLLOUT:
                    self._send_rest(connection)
                elif self._receive(connection, deadline, outcome):
                    if time.perf_counter() < deadline:
                        self._send_next(connection)
                    else:
                        waiting -= 1

    def _send_next(self, connection: Connection) -> None:
        exchange = connection.exchange = next(self._exchanges)
        connection.sent_at = time.perf_counter()
        try:
            sent = connection.socket.send(exchange.request)
        except BlockingIOError:
            sent = 0
        except OSError:  # closed in the meantime, which reading will tell
            return
        if sent < len(exchange.request):
            connection.unsent = memoryview(exchange.request)[sent:]
            self._epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)

    def _send_rest(self, connection: Connection) -> None:
        try:
            connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
        except BlockingIOError:
            return
        except OSError:
            connection.unsent = memoryview(b"")
        if not connection.unsent:
            self._epoll.modify(connection.socket, select.EPOLLIN)

    def _receive(self, connection: Connection, deadline: float, outcome: Outcome) -> bool:
        """Whether the answer is complete, or will never be."""
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
        except OSError as error:
            return self._lost(connection, outcome, str(error))
        if not data:
            return self._lost(connection, outcome, "closed")
        if connection.received:
            data = connection.received + data
        size = _size(data)
        if len(data) < size or not size:
            connection.received = data
            return False
        connection.received = b""
        now = time.perf_counter()
        fault = _fault(connection.exchange, data, size)
        outcome.completed += 1
        if fault:
            outcome.error(fault)
        elif now < deadline:
            outcome.latencies.append(now - connection.sent_at)
        return True

    def _lost(self, connection: Connection, outcome: Outcome, why: str) -> bool:
        outcome.error(f"the server ended a connection ({why})")
        del self._connections[connection.socket.fileno()]
        connection.socket.close()
        replacement = self._connect()
        connection.socket, connection.received, connection.unsent = replacement.socket, b"", memoryview(b"")
        self._connections[connection.socket.fileno()] = connection
        return True

    def _connect(self) -> Connection:
        sock = socket.create_connection(self._address, SILENCE_SECONDS)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._epoll.register(sock, select.EPOLLIN)
        connection = self._connections[sock.fileno()] = Connection(sock)
        return connection


def _size(data: bytes) -> int:
    """How many bytes the answer that starts `data` has; 0 while its head is incomplete."""
    end = data.find(HEAD_END)
    if end < 0:
        return 0
    head = data[:end].lower()
    at = head.find(LENGTH)
    if at < 0:
        raise ValueError(f"expected an answer with Content-Length, got {head!r}")
    at += len(LENGTH)
    line_end = head.find(b"\r\n", at)
    return end + len(HEAD_END) + int(head[at : line_end if line_end > 0 else end])


def _fault(exchange: Exchange, data: bytes, size: int) -> str | None:
    """What is wrong with the answer `data`, which should have `size` bytes."""
    body = data[data.find(HEAD_END) + len(HEAD_END) :]
    if not data.startswith(b"HTTP/1.1 200 ") or len(data) > size:
        return f"expected one answer of status 200, got {data[:400]!r}"
    if body in exchange.accepted:
        return None
    fault = exchange.fault(body)
    if fault is None:
        exchange.accepted.add(body)
    return fault


@contextmanager
def _no_collections() -> Iterator[None]:
    """PERF: nothing here makes cycles, and a collection in the middle would look like a slow server."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
