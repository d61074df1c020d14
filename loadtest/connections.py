"""Connections that one thread keeps busy: requests go out, answers are put together and checked.

A connection is opened when it is first needed, and again after the server has closed it: with an answer that says so,
or while it was idle. One that ends before its answer is an error.
"""

import http
import select
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from itertools import cycle

from addresses import Address
from exchanges import Exchange, extent, fault_of, status_of
from outcomes import Answer, Outcome

RECEIVE_BYTES = 64 << 10
# A server that is silent for so long is taken to be stuck.
SILENCE_SECONDS = 10.0
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
NO_BYTES = memoryview(b"")

Events = list[tuple[int, int]]


class Stalled(Exception):
    """No answer came within SILENCE_SECONDS."""


class Connection:
    """It has an `exchange` while an answer is to come."""

    __slots__ = ("due", "exchange", "is_open", "received", "socket", "unsent")

    def __init__(self) -> None:
        self.socket: socket.socket
        self.is_open = False
        self.exchange: Exchange | None = None
        self.due = 0.0
        self.unsent = NO_BYTES
        self.received = b""


class Connections:
    def __init__(self, address: Address, exchanges: Sequence[Exchange], count: int) -> None:
        self.all = [Connection() for _ in range(count)]
        self._address = address
        self._exchanges = cycle(exchanges)
        self._epoll = select.epoll()
        self._by_fd: dict[int, Connection] = {}

    def close(self) -> None:
        for connection in list(self._by_fd.values()):
            self._close(connection)
        self._epoll.close()

    def ask(self, connection: Connection, due: float, exchange: Exchange | None = None) -> None:
        """Send the next request, or that of `exchange`; its latency counts from when it was `due`."""
        if not connection.is_open:
            self._open(connection)
        connection.due = due
        connection.exchange = exchange or next(self._exchanges)
        connection.unsent = memoryview(connection.exchange.request)
        self._send(connection)
        if connection.unsent:
            self._epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)

    def events(self) -> Events:
        events = self._epoll.poll(SILENCE_SECONDS)
        if not events:
            raise Stalled(f"expected answers, got none within {SILENCE_SECONDS:g} s")
        return events

    def events_until(self, moment: float) -> Events:
        """PERF: select(2) counts in microseconds and epoll_wait(2) in milliseconds, which would make requests late."""
        select.select([self._epoll], [], [], max(0.0, moment - time.perf_counter()))
        return self._epoll.poll(0)

    def answered(self, events: Events, deadline: float, outcome: Outcome) -> Iterator[Connection]:
        """Those whose answer is now complete, or will never be; only what comes before `deadline` has a latency."""
        for fd, event in events:
            connection = self._by_fd.get(fd)
            if connection is None:  # closed meanwhile
                continue
            if event & select.EPOLLOUT:
                self._send_rest(connection)
            elif self._receive(connection, deadline, outcome):
                yield connection

    def _send_rest(self, connection: Connection) -> None:
        self._send(connection)
        if not connection.unsent:
            self._epoll.modify(connection.socket, select.EPOLLIN)

    def _send(self, connection: Connection) -> None:
        """As much as the socket takes, which over TLS is a record of 16 KiB at a time."""
        try:
            while connection.unsent:
                connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
        except WOULD_BLOCK:
            return
        except OSError:  # closed in the meantime, which reading will tell
            connection.unsent = NO_BYTES

    def _receive(self, connection: Connection, deadline: float, outcome: Outcome) -> bool:
        """Whether the answer is complete, or will never be."""
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
        except WOULD_BLOCK:  # of a record of TLS not all is there, or it was not for us
            return False
        except OSError as error:
            return self._lost(connection, outcome, str(error))
        if not data:
            return self._lost(connection, outcome, "closed")
        if connection.exchange is None:
            outcome.error(f"expected no answer without a request, got {data[:400]!r}")
            return self._lost(connection, outcome, "unasked")
        data = connection.received + data if connection.received else data
        size, closes = extent(data)
        if len(data) < size or not size:
            connection.received = data
            return False
        self._finish(connection, connection.exchange, data, size, deadline, outcome)
        if closes:
            self._close(connection)
        return True

    def _finish(
        self, connection: Connection, exchange: Exchange, data: bytes, size: int, deadline: float, outcome: Outcome
    ) -> None:
        now = time.perf_counter()
        fault = fault_of(exchange, data, size)
        connection.exchange = None
        connection.received = b""
        outcome.completed += 1
        if fault:
            outcome.error(fault)
            return
        answer = Answer(status_of(data), connection.due, now - connection.due)
        outcome.answers.append(answer)
        if answer.status == http.HTTPStatus.OK and now < deadline:
            outcome.latencies.append(answer.seconds)

    def _lost(self, connection: Connection, outcome: Outcome, why: str) -> bool:
        """Whether an answer is lost with it: a server may close a connection that is idle."""
        was_busy = connection.exchange is not None
        if was_busy:
            outcome.error(f"the server ended a connection ({why})")
        self._close(connection)
        return was_busy

    def _open(self, connection: Connection) -> None:
        connection.socket = self._address.connect()
        connection.is_open = True
        self._by_fd[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket, select.EPOLLIN)

    def _close(self, connection: Connection) -> None:
        del self._by_fd[connection.socket.fileno()]
        connection.socket.close()
        connection.is_open = False
        connection.exchange = None
        connection.received = b""
