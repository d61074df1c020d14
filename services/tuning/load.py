"""A closed loop: connections to a server on this machine, each of which sends a request once it has its answer.

PERF: it shares the CPUs with what it measures: one thread, epoll, requests that are made beforehand.
"""

import itertools
import re
import select
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Self

import msgspec

HOST = "127.0.0.1"
RECEIVE_BYTES = 64 << 10
# A server that says nothing for so long is taken to be stuck.
SILENCE_SECONDS = 10.0
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
HEAD_END = b"\r\n\r\n"
OK = b"200"
# No room, or not in time: more than the server can take, but nothing is wrong.
REFUSALS = (b"503", b"504")


class LoadError(Exception):
    """What came is no prediction."""


class Level(msgspec.Struct, frozen=True):
    """What so many busy connections saw: answers per second, latencies, and how many requests were refused."""

    connections: int
    rate: float
    p50_ms: float
    p99_ms: float
    refused: int = 0

    def is_within(self, goal_ms: float) -> bool:
        return self.p99_ms <= goal_ms and not self.refused


class Load:
    """`requests` are sent in turn, from one run to the next."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self._port = port
        self._requests = itertools.cycle(requests)

    def run(self, connections: int, seconds: float) -> Level:
        """Keep them all busy for `seconds`, then wait for the answers that are still to come."""
        latencies: list[float] = []
        in_time = refused = 0
        with _Clients(self._port) as clients:
            deadline = time.perf_counter() + seconds
            for _ in range(connections):
                clients.ask(_Client(), next(self._requests))
            while clients.waiting:
                for client, status in clients.answered():
                    now = time.perf_counter()
                    if status == OK:
                        latencies.append(now - client.began)
                        in_time += now < deadline
                    else:
                        refused += 1
                    if now < deadline:
                        clients.ask(client, next(self._requests))
        latencies.sort()
        return Level(connections, in_time / seconds, _percentile(latencies, 50), _percentile(latencies, 99), refused)


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """In milliseconds; without any answer, as if it never came."""
    return 1000 * ordered[len(ordered) * percent // 100] if ordered else 1000 * SILENCE_SECONDS


class _Client:
    """A connection, which is opened when it is needed, and again after the server has closed it."""

    __slots__ = ("began", "is_open", "received", "socket", "unsent")

    def __init__(self) -> None:
        self.socket: socket.socket
        self.is_open = False
        self.began = 0.0
        self.received = b""
        self.unsent = memoryview(b"")


class _Clients:
    def __init__(self, port: int) -> None:
        self.waiting = 0
        self._port = port
        self._epoll = select.epoll()
        self._open: dict[int, _Client] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in [*self._open.values()]:
            self._close(client)
        self._epoll.close()

    def ask(self, client: _Client, request: bytes) -> None:
        self.waiting += 1
        client.began = time.perf_counter()
        client.received = b""
        client.unsent = memoryview(request)
        if not client.is_open:
            self._connect(client)
        if not _sends_all(client):
            self._epoll.modify(client.socket, select.EPOLLIN | select.EPOLLOUT)

    def answered(self) -> Iterator[tuple[_Client, bytes]]:
        """Those whose answer is there now, with its status; LoadError if it is neither a prediction nor a refusal."""
        events = self._epoll.poll(SILENCE_SECONDS)
        if not events:
            raise LoadError(f"expected an answer within {SILENCE_SECONDS:g} s, got none")
        for fd, event in events:
            client = self._open[fd]
            if event & select.EPOLLOUT:
                if _sends_all(client):
                    self._epoll.modify(fd, select.EPOLLIN)
            elif status := self._receive(client):
                self.waiting -= 1
                yield client, status

    def _receive(self, client: _Client) -> bytes:
        """The status once all of the answer has come, nothing before."""
        received = client.socket.recv(RECEIVE_BYTES)
        if not received:
            raise LoadError("expected an answer, got the end of the connection")
        client.received = answer = client.received + received
        head, end, body = answer.partition(HEAD_END)
        length = LENGTH.search(head)
        if not end or length is None or len(body) < int(length[1]):
            return b""
        status = answer[9:12]
        if status != OK and status not in REFUSALS:
            raise LoadError(f"expected status 200, got {answer[:400]!r}")
        if CLOSE.search(head):
            self._close(client)
        return status

    def _connect(self, client: _Client) -> None:
        client.socket = socket.create_connection((HOST, self._port), SILENCE_SECONDS)
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.socket.setblocking(False)
        client.is_open = True
        self._open[client.socket.fileno()] = client
        self._epoll.register(client.socket, select.EPOLLIN)

    def _close(self, client: _Client) -> None:
        del self._open[client.socket.fileno()]
        client.socket.close()
        client.is_open = False


def _sends_all(client: _Client) -> bool:
    """Whether the socket has taken the whole request; what is left goes when it has room again."""
    try:
        while client.unsent:
            client.unsent = client.unsent[client.socket.send(client.unsent) :]
    except BlockingIOError:
        return False
    except OSError:  # the server has heard enough; its answer tells why
        return True
    return True
