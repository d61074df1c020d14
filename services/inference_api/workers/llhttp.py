"""A Gunicorn worker on llhttp, the HTTP parser of Node.js (PyPI httptools): one thread, epoll, WSGI called inline.

An inference takes the whole core that the thread plan gives this worker, so a second thread would only make it later.
What waits for other processes (`App.waits`) runs aside in a thread. Every ready connection has one request served in
turn, and new connections are accepted last, so that they go to whichever worker is idle: what waits in the kernel's
queue is served by the first that can, in this process or another. A connection that is kept binds what comes on it to
one worker, however busy; so it is kept only while answers are as quick as another connection would be.
"""

import math
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from gunicorn.workers.base import Worker

from inference_api.admission import Admission, is_background, is_exempt
from inference_api.workers.connection import Connection, Environ, Limits, Refusal, Request, base_environ
from inference_api.workers.response import CLOSE, Response, respond
from inference_core.settings import read_settings

READ_BYTES = 64 << 10
TICK_SECONDS = 1.0
ACCEPT_PAUSE_SECONDS = 0.1
LINGER_SECONDS = 2.0
# How much longer a worker waits before it accepts, for each connection that it has, so that others may go first.
ACCEPT_DELAY_SECONDS, MAX_ACCEPT_DELAY_SECONDS = 50e-6, 1e-3
# An answer that took longer ends its connection: to open another, which any worker may take, costs a fraction of that.
KEEP_WITHIN_SECONDS = 1e-3
MAX_ASIDE = 8
# In a turn, once the queue is long.
MAX_ACCEPTS = 64
FULL = Refusal(503, "the server has more requests than it can answer in time; try again", keeps=True, too_much="queue")
CONTINUE = Response(b"HTTP/1.1 100 Continue\r\n\r\n", None, close=False)


class LlhttpWorker(Worker):  # type: ignore[misc]  # Gunicorn has no types
    def run(self) -> None:
        self._prepare()
        while not self._ended(self._now):
            self._turn()

    def _prepare(self) -> None:
        settings = read_settings(os.environ)
        self._limits = Limits(settings.largest_body_bytes, self.cfg.keepalive)
        self._drain_seconds = settings.drain_seconds
        self._waits: Callable[[Environ], bool] = getattr(self.wsgi, "waits", lambda environ: False)
        self._connections: dict[int, Connection] = {}
        self._kept = 0
        self._backlog: deque[Connection] = deque()
        self._answered_aside: deque[tuple[Connection, Response]] = deque()
        self._aside = 0
        self._admission = Admission(settings.max_queue_ms / 1000)
        # What waits for its turn once the queue is long: those who wait for an answer, then those who have time.
        self._waiting: deque[Connection] = deque()
        self._in_background: deque[Connection] = deque()
        self._is_late = False
        self._listeners = {listener.fileno(): listener for listener in self.sockets}
        self._listening = False
        self._listen_from = 0.0
        self._next_tick = 0.0
        self._next_beat = 0.0
        # PERF: the clock is read once a turn; deadlines of connections need no more.
        self._now = time.monotonic()
        self._idle_at = self._served_at = self._now
        self._drain_from: float | None = None
        self._drained = False
        for listener in self.sockets:
            listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self.PIPE[0], select.EPOLLIN)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGQUIT and SIGINT: end now."""
        self.cfg.worker_int(self)
        os._exit(0)

    def handle_abort(self, sig: int, frame: Any) -> None:
        """SIGABRT: the arbiter misses our heartbeat. Not SystemExit, which what hangs could catch."""
        self.cfg.worker_abort(self)
        os._exit(1)

    # The loop.

    def _turn(self) -> None:
        self._listen()
        arrivals = []
        events_of = self._poll()
        for fd, events in events_of:
            if connection := self._connections.get(fd):
                self._on_event(connection, events)
            elif fd in self._listeners:
                arrivals.append(self._listeners[fd])
            elif fd == self.PIPE[0]:
                self._wake_up()
        for _ in range(len(self._backlog)):
            connection = self._backlog.popleft()
            if self._connections.get(connection.fd) is connection:  # else it was late, and closed
                self._serve_next(connection)
        if self._is_late:  # they are in the queue as well, and it is cut before anybody is served
            self._accept_all(arrivals)
        self._serve_waiting()
        if arrivals and not self._is_late:
            self._accept_fairly(arrivals, idle=len(arrivals) == len(events_of))

    def _poll(self) -> list[tuple[int, int]]:
        """What has happened, or happens next; with nothing to do meanwhile, this worker is idle."""
        events = self._epoll.poll(0)
        if not (events or self._backlog or self._waiting or self._in_background):
            events = self._epoll.poll(TICK_SECONDS)
            self._idle_at = time.monotonic()
        self._now = time.monotonic()
        return events

    def _ended(self, now: float) -> bool:
        """Once a second: give a sign of life, look for connections that are late, and say whether all is drained."""
        if now < self._next_tick:
            return False
        self._next_tick = now + TICK_SECONDS
        self._beat()
        for connection in list(self._connections.values()):
            if now > connection.deadline:
                self._on_late(connection)
        if self.ppid != os.getppid():
            self.alive = False
        if self.alive:
            return False
        self._drain_from = self._drain_from or now
        drained = now - self._drain_from
        if not self._drained:  # others may take this long to notice, and whoever replaces us to start
            self._drained = drained >= self._drain_seconds
            return False
        unfinished = any(connection.busy or connection.reading for connection in self._connections.values())
        return not unfinished or drained > self.cfg.graceful_timeout

    def _beat(self) -> None:
        """Tell the arbiter that this worker lives."""
        self._next_beat = self._now + TICK_SECONDS
        self.notify()

    def _listen(self) -> None:
        """Take new connections, unless this worker has drained, is full of busy ones, or out of file descriptors."""
        wanted = not self._drained and self._now >= self._listen_from
        if wanted == self._listening:
            return
        for listener in self.sockets:
            if wanted:
                self._epoll.register(listener, select.EPOLLIN)
            else:
                self._epoll.unregister(listener)
        self._listening = wanted

    def _accept_fairly(self, listeners: list[socket.socket], *, idle: bool) -> None:
        """Accept one connection from each, after those workers that keep fewer: it may be kept as well.

        A worker that has served others before it comes here has waited already.
        """
        if idle and self._kept:
            time.sleep(min(self._kept * ACCEPT_DELAY_SECONDS, MAX_ACCEPT_DELAY_SECONDS))
        self._now = time.monotonic()
        for listener in listeners:
            if self._has_room():
                self._accept(listener)
            else:
                self._listen_from = self._now + ACCEPT_PAUSE_SECONDS

    def _accept_all(self, listeners: list[socket.socket]) -> None:
        for listener in listeners:
            for _ in range(MAX_ACCEPTS):
                if not self._has_room() or not self._accept(listener):
                    break

    def _has_room(self) -> bool:
        """Whether there is room for one connection more; the one that has been idle for the longest makes it."""
        if len(self._connections) < self.cfg.worker_connections:
            return True
        idle = [
            connection for connection in self._connections.values() if not connection.busy and not connection.reading
        ]
        if idle:
            self._close(min(idle, key=lambda connection: connection.deadline))
        return bool(idle)

    def _accept(self, listener: socket.socket) -> bool:
        """Whether there was a connection to accept."""
        try:
            client, peer = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:  # out of file descriptors or memory: those who are connected come first
            self.log.warning("cannot accept connections: %s", error)
            self._listen_from = self._now + ACCEPT_PAUSE_SECONDS
            return False
        client.setblocking(False)
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(client, base_environ(listener, client, peer), self._limits, self._now)
        self._connections[connection.fd] = connection
        self._read(connection)
        if connection.fd in self._connections and not connection.events and not connection.busy:
            self._want(connection, select.EPOLLIN)
        return True

    def _on_event(self, connection: Connection, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush(connection)
        else:  # readable, closed or broken: reading tells
            self._read(connection)

    def _on_late(self, connection: Connection) -> None:
        if connection.busy or not connection.reading:
            self._close(connection)
            return
        connection.refuse(Refusal(408, "the request took too long to arrive"))
        connection.deadline = self._now + self._limits.write_seconds
        self._serve_next(connection)

    # One connection.

    def _read(self, connection: Connection) -> None:
        """Take what has arrived. A large body at once, lest each of its pieces wait for the requests of others."""
        while self._read_piece(connection) == READ_BYTES and connection.reading and not connection.busy:
            pass

    def _read_piece(self, connection: Connection) -> int:
        try:
            data = connection.socket.recv(READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if not data:
            self._close(connection)
        elif not connection.finished:
            self._take(connection, data)
        return len(data)

    def _take(self, connection: Connection, data: bytes) -> None:
        try:
            connection.feed(data, self._now)
        except Exception:  # a fault of ours, which is to cost its finder's connection and no other
            self.log.exception("a request could not be parsed")
            self._close(connection)
            return
        if connection.requests and not connection.busy:
            self._admit(connection)
        elif connection.continues:
            connection.continues = False
            self._send(connection, CONTINUE)

    # A request.

    def _admit(self, connection: Connection) -> None:
        """Serve it now; once the queue is long, in its turn, or not at all."""
        request = connection.requests[0]
        if self._is_late and not request.refusal and not is_exempt(request.environ):
            self._queue(connection, request)
            return
        busy = self._now - self._idle_at
        # PERF: nobody's age is asked for as long as there are pauses.
        if busy > self._admission.max_wait / 2 and not self._is_late:
            self._is_late = self._admission.is_late(connection.age(request), busy)
        self._serve_next(connection)

    def _queue(self, connection: Connection, request: Request) -> None:
        background = is_background(request.environ)
        waiting = len(self._waiting) + background * len(self._in_background)
        if not self._admission.has_room(waiting, background, connection.age(request)):
            request.refusal = FULL
            self._serve_next(connection)
            return
        connection.busy = True
        connection.deadline = math.inf  # it waits for us
        self._want(connection, 0)
        (self._in_background if background else self._waiting).append(connection)

    def _serve_waiting(self) -> None:
        """One of those who wait, so that there is a look at who has arrived meanwhile; not who has gone."""
        while queue := self._waiting or self._in_background:
            connection = queue.popleft()
            if self._connections.get(connection.fd) is not connection:
                continue
            if _has_gone(connection.socket):
                self._close(connection)
                continue
            self._serve_next(connection)
            return
        self._is_late = False

    def _serve_next(self, connection: Connection) -> None:
        self._now = time.monotonic()
        if self._now >= self._next_beat:  # a turn of many slow requests is no hang
            self._beat()
        request = connection.requests.popleft()
        if request.refusal:
            self._send(connection, respond(self.wsgi, request, self._keep_within(connection)))
        elif self._waits(request.environ):
            self._run_aside(connection, request)
        else:
            response = respond(self.wsgi, request, self._keep_within(connection))
            # Once the queue is long, to accept and to refuse others is part of what each takes.
            began = self._served_at if self._is_late else self._now
            self._now = self._served_at = time.monotonic()
            self._admission.served(self._now - began)
            self._send(connection, response)

    def _keep_within(self, connection: Connection) -> float:
        if not self.alive:
            return CLOSE
        # What has been sent after this request already is answered as well.
        return math.inf if connection.requests or connection.reading else KEEP_WITHIN_SECONDS

    def _send(self, connection: Connection, response: Response) -> None:
        connection.out, connection.rest, connection.closes = response.data, response.rest, response.close
        self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        """Send what the socket takes; the next piece of a longer body has its turn after the other connections."""
        try:
            if not connection.out and connection.rest:
                connection.out = next(connection.rest, b"")
                connection.rest = connection.rest if connection.out else None
            sent = connection.socket.send(connection.out) if connection.out else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        except Exception:
            self.log.exception("the application failed in the middle of an answer")
            self._close(connection)
            return
        if sent < len(connection.out):
            connection.out = memoryview(connection.out)[sent:]
        else:
            connection.out = b""
        if connection.out or connection.rest:
            connection.busy = True
            connection.deadline = self._now + self._limits.write_seconds
            self._want(connection, select.EPOLLOUT)
        else:
            self._after_answer(connection)

    def _after_answer(self, connection: Connection) -> None:
        connection.busy = False
        if connection.closes and not connection.finished:
            self._close(connection)
        elif connection.closes:
            # Closing on a client that is still sending would reset the connection before it has read our answer.
            self._linger(connection)
        elif connection.requests:
            connection.busy = True
            connection.deadline = float("inf")  # it waits for us
            self._want(connection, 0)
            self._backlog.append(connection)
        else:
            limits = self._limits
            self._kept += not connection.kept
            connection.kept = True
            connection.deadline = self._now + (limits.body_seconds if connection.reading else limits.keepalive_seconds)
            self._want(connection, select.EPOLLIN)

    def _linger(self, connection: Connection) -> None:
        """Let the client know that no more comes, and wait a little for it to go."""
        try:
            connection.socket.shutdown(socket.SHUT_WR)
        except OSError:  # it has gone already
            self._close(connection)
            return
        connection.deadline = self._now + LINGER_SECONDS
        self._want(connection, select.EPOLLIN)

    def _want(self, connection: Connection, events: int) -> None:
        if events == connection.events:
            return
        if not events:
            self._epoll.unregister(connection.fd)
        elif not connection.events:
            self._epoll.register(connection.fd, events)
        else:
            self._epoll.modify(connection.fd, events)
        connection.events = events

    def _close(self, connection: Connection) -> None:
        self._want(connection, 0)
        del self._connections[connection.fd]
        self._kept -= connection.kept
        connection.close()

    # Requests that wait for others.

    def _run_aside(self, connection: Connection, request: Request) -> None:
        if self._aside >= MAX_ASIDE:
            detail = f"expected at most {MAX_ASIDE} such requests at a time, got more"
            request.refusal = Refusal(503, detail, too_much="aside")
            self._send(connection, respond(self.wsgi, request, self._keep_within(connection)))
            return
        self._aside += 1
        connection.busy = True
        connection.deadline = float("inf")
        self._want(connection, 0)
        threading.Thread(target=self._answer_aside, args=(connection, request), daemon=True).start()

    def _answer_aside(self, connection: Connection, request: Request) -> None:
        self._answered_aside.append((connection, respond(self.wsgi, request, CLOSE)))
        try:
            os.write(self.PIPE[1], b".")
        except BlockingIOError:  # full: the loop is about to wake up anyway
            return

    def _wake_up(self) -> None:
        """A signal came, or an answer is ready."""
        os.read(self.PIPE[0], READ_BYTES)
        while self._answered_aside:
            connection, response = self._answered_aside.popleft()
            self._aside -= 1
            self._send(connection, response)


def _has_gone(client: socket.socket) -> bool:
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
