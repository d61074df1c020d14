"""Calling a WSGI application (PEP 3333) and putting its answer on the wire (RFC 9112)."""

import functools
import http
import time
from collections.abc import Callable, Iterable, Iterator
from email.utils import formatdate
from typing import Any

import falcon
import structlog

from inference_api.error_handlers import RETRY_AFTER_SECONDS, error_body
from inference_api.observation.observer import REQUEST_ID
from inference_api.workers.connection import Environ, Request
from observability.families import REQUESTS, SHED
from observability.metrics import OTHER

# PERF: up to this size head and body are copied together and leave in one system call.
JOINED_BYTES = 64 << 10
BODILESS = ("1", "204", "304")
# As `keep_within`: the connection is not kept.
CLOSE = -1.0
# In place of a route, in metrics.
REFUSED = "none"

Headers = list[tuple[str, str]]
WsgiApp = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

log = structlog.get_logger()


class Response:
    """`data` to send first, then what `rest` yields; then the connection closes or waits for the next request."""

    __slots__ = ("close", "data", "rest")

    def __init__(self, data: bytes, rest: Iterator[bytes] | None, close: bool) -> None:
        self.data = data
        self.rest = rest
        self.close = close


def respond(app: WsgiApp, request: Request, keep_within: float) -> Response:
    """The application's answer, or the server's own if the request was refused or the application failed.

    The connection is kept if the request allows it and the answer took no more than `keep_within` seconds of this
    thread's CPU: what others take from it meanwhile says nothing about the request.
    """
    environ = request.environ
    if request.refusal:
        keep_alive = request.keep_alive and request.refusal.keeps and keep_within != CLOSE
        if request.refusal.too_much:
            SHED.of(request.refusal.too_much).add()
        return _own(environ, request.refusal.status, request.refusal.detail, keep_alive=keep_alive)
    started: list[Any] = []

    def start_response(status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], None]:
        started[:] = (status, headers)
        return _no_write

    try:
        began = time.thread_time()
        result = app(environ, start_response)
        keep_alive = request.keep_alive and time.thread_time() - began <= keep_within
        if isinstance(result, list):  # what Falcon returns unless it streams
            return _whole(environ, started[0], started[1], b"".join(result), keep_alive)
        return _streamed(environ, started, result, keep_alive)
    except Exception as error:
        log.error("the application failed", path=environ["PATH_INFO"], exc_info=error)
        return _own(environ, 500, "an error of the server")


def check_headers(fields: str, count: int) -> None:
    """SECURITY: a line break or NUL inside one of `count` fields would start another field, or another answer."""
    if fields.count("\n") != count or fields.count("\r") != count or "\0" in fields:
        raise ValueError("a response header contains a control character")


def _whole(environ: Environ, status: str, headers: Headers, body: bytes, keep_alive: bool) -> Response:
    if status.startswith(BODILESS):
        return Response(_head(status, _without_length(headers), "", keep_alive), None, not keep_alive)
    head = _head(status, headers, "" if _has_length(headers) else f"Content-Length: {len(body)}\r\n", keep_alive)
    if environ["REQUEST_METHOD"] == "HEAD":
        return Response(head, None, not keep_alive)
    if len(body) > JOINED_BYTES:
        return Response(head, iter((body,)), not keep_alive)
    return Response(head + body, None, not keep_alive)


def _streamed(environ: Environ, started: list[Any], result: Iterable[bytes], keep_alive: bool) -> Response:
    """A body of unknown extent: chunked, or to the end of the connection for HTTP/1.0."""
    chunks = iter(result)
    first = next(chunks, b"")  # a generator calls start_response only now
    status, headers = started
    if environ["REQUEST_METHOD"] == "HEAD" or status.startswith(BODILESS):
        _close(result)
        return Response(_head(status, headers, "", keep_alive), None, not keep_alive)
    if _has_length(headers):
        return Response(_head(status, headers, "", keep_alive) + first, _closing(chunks, result), not keep_alive)
    if environ["SERVER_PROTOCOL"] == "HTTP/1.0":
        return Response(_head(status, headers, "", False) + first, _closing(chunks, result), True)
    head = _head(status, headers, "Transfer-Encoding: chunked\r\n", keep_alive)
    return Response(head + _chunk(first), _chunked(chunks, result), not keep_alive)


def _head(status: str, headers: Headers, extra: str, keep_alive: bool) -> bytes:
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers])
    check_headers(fields, len(headers))
    connection = "" if keep_alive else "Connection: close\r\n"
    return f"HTTP/1.1 {status}\r\nDate: {_date(int(time.time()))}\r\n{connection}{extra}{fields}\r\n".encode("latin-1")


def _own(environ: Environ, status: int, detail: str, *, keep_alive: bool = False) -> Response:
    """Of the server, not of the application, which never hears of the request."""
    method = environ.get("REQUEST_METHOD", "")
    REQUESTS.of(REFUSED, method if method in falcon.HTTP_METHODS else OTHER, "", "", str(status)).add()
    given = environ.get("HTTP_X_REQUEST_ID", "")
    request_id = given if REQUEST_ID.fullmatch(given) else ""
    body, media_type = error_body(environ.get("PATH_INFO", ""), status, detail, request_id)
    headers = [("Content-Type", media_type), ("Content-Length", str(len(body)))]
    if request_id:
        headers.append(("X-Request-ID", request_id))
    if status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append(("Retry-After", RETRY_AFTER_SECONDS))
    head = _head(f"{status} {http.HTTPStatus(status).phrase}", headers, "", keep_alive)
    return Response(head if environ.get("REQUEST_METHOD") == "HEAD" else head + body, None, not keep_alive)


def _chunked(chunks: Iterator[bytes], result: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in _closing(chunks, result):
        yield _chunk(chunk)
    yield b"0\r\n\r\n"


def _closing(chunks: Iterator[bytes], result: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks but for empty ones, which mean the end to who reads them; `result` is closed after the last."""
    try:
        for chunk in chunks:
            if chunk:
                yield chunk
    finally:
        _close(result)


def _close(result: Iterable[bytes]) -> None:
    if hasattr(result, "close"):
        result.close()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""  # an empty one would end the body


def _has_length(headers: Headers) -> bool:
    for name, _ in headers:  # noqa: SIM110  # PERF: any() of a generator costs five times as much
        if name.lower() == "content-length":
            return True
    return False


def _without_length(headers: Headers) -> Headers:
    return [field for field in headers if field[0].lower() != "content-length"]


def _no_write(data: bytes) -> None:
    raise NotImplementedError("PEP 3333's write() is not offered: return the body")


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    """The header Date, made once a second."""
    return formatdate(second, usegmt=True)
