"""meinheld 1.0.2 (2020) under a current Gunicorn, with its known faults closed or kept away from the application.

ARCHITECTURE.md lists the faults and what closes each. What can not be closed here, NGINX in front keeps out.
"""

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from itertools import chain
from traceback import format_exception
from types import FrameType, TracebackType
from typing import Any

from gunicorn.glogging import Logger
from meinheld import gmeinheld, server

from inference_api.workers.connection import Environ
from inference_api.workers.response import Headers, WsgiApp, check_headers
from inference_core.settings import read_settings

MAX_FDS = 65536
# How far over the bound a body may be for the application, rather than meinheld's own HTML, to refuse it.
BODY_SLACK_BYTES = 1 << 20
# What fits into the send buffer of any socket, so that meinheld need not wait in the middle of an answer.
LARGE_BYTES = 128 << 10
LARGE_WAIT_MS = 5000
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}
REFUSED = [("Content-Type", "text/plain"), ("Content-Length", "0"), ("Connection", "close")]


class MeinheldWorker(gmeinheld.MeinheldWorker):  # type: ignore[misc]  # meinheld has no types
    # Until it runs: who is told to end before that has nobody to wait for.
    _drain_seconds = 0.0

    def __init__(self, *args: Any) -> None:
        access, error = Logger.access, Logger.error
        super().__init__(*args)
        # It has just replaced these for the whole arbiter, which then dies when a worker does.
        Logger.access, Logger.error = access, error
        server.set_access_logger(None)
        server.set_error_logger(ErrorLog(self.log))
        self._drain_until: float | None = None
        self._armed = False

    def run(self) -> None:
        settings = read_settings(os.environ)
        self._drain_seconds = settings.drain_seconds
        body_bytes = settings.largest_body_bytes + BODY_SLACK_BYTES
        server.set_keepalive(self.cfg.keepalive)
        server.set_picoev_max_fd(MAX_FDS)  # a file descriptor beyond it is never served again
        server.set_max_content_length(body_bytes)
        server.set_client_body_buffer_size(body_bytes + 1)  # never to a temporary file: it crashes where there is none
        server.set_watchdog(self.watchdog)  # its own "fast" one does not tell Gunicorn's arbiter of a hang
        server.set_listen_socket([listener.fileno() for listener in self.sockets])
        self.notify()
        try:
            server.run(Guard(self.wsgi, self.notify))
        except KeyboardInterrupt:
            return

    def watchdog(self) -> None:
        """Called by meinheld about once a second."""
        self.notify()
        if not self._armed:  # server.run() has put its own handlers in place, which drop connections
            signal.signal(signal.SIGTERM, self.handle_exit)
            signal.signal(signal.SIGINT, self.handle_quit)
            self._armed = True
        if self.ppid != os.getppid():
            self._drain()
        if self._drain_until is not None and time.monotonic() >= self._drain_until:
            server.stop(1)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: go on answering, with Connection: close, for as long as others may take to notice."""
        self._drain()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        server.stop(1)

    def handle_abort(self, sig: int, frame: FrameType | None) -> None:
        """SIGABRT: the arbiter misses our heartbeat. Not SystemExit, which meinheld answers with 500 and survives."""
        self.cfg.worker_abort(self)
        os._exit(1)

    def _drain(self) -> None:
        if self._drain_until is None:
            self.alive = False
            server.set_keepalive(0)
            self._drain_until = time.monotonic() + self._drain_seconds


class ErrorLog:
    """meinheld calls `error(type, value, traceback)`, which is not what a logger takes."""

    def __init__(self, log: Logger) -> None:
        self._log = log

    def error(self, kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        self._log.error("%s", "".join(format_exception(kind, error, at)))


class Guard:
    """Keeps from the application what meinheld's parser lets through, and from the wire what it does not check.

    `beat` is called while an answer is written that takes long.
    """

    def __init__(self, app: WsgiApp, beat: Callable[[], None]) -> None:
        self._app = app
        self._beat = beat

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        # It decodes a path twice, so that "%25" hides what a filter before it looked for.
        if environ["REQUEST_METHOD"] not in METHODS or "%" in path or not path.isprintable():
            start_response("400 Bad Request", REFUSED)
            return []

        started: list[tuple[str, Headers]] = []

        def start_checked(status: str, headers: Headers, exc_info: Any = None) -> Any:
            check_headers("".join([f"{name}: {value}\r\n" for name, value in headers]), len(headers))
            started.append((status, headers))
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        result = self._app(environ, start_checked)
        if isinstance(result, list) and sum(map(len, result)) <= LARGE_BYTES:
            return result
        status, headers = started[-1]
        _send_large(environ["meinheld.client"], status, headers, result, self._beat)
        if hasattr(result, "close"):
            result.close()
        return []


def _send_large(client: Any, status: str, headers: Headers, body: Iterable[bytes], beat: Callable[[], None]) -> None:
    """Put an answer on the wire that the socket may not take at once, or that is made piece by piece.

    meinheld would stall on it, or append a page of its own (500) to it, which the next reader of the connection would
    take for its answer. The connection ends here, and the worker waits for the client: NGINX takes all at once.
    """
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers])
    head = f"HTTP/1.1 {status}\r\n{fields}Connection: close\r\n\r\n".encode("latin-1")
    writable = select.poll()
    writable.register(client.get_fd(), select.POLLOUT)
    try:
        for piece in chain([head], body):
            rest = memoryview(piece)
            while rest and writable.poll(LARGE_WAIT_MS):
                rest = rest[os.write(client.get_fd(), rest) :]
            if rest:  # the client takes nothing any more
                break
            beat()
        with socket.fromfd(client.get_fd(), socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the client has gone
        pass
    client.set_closed(1)
