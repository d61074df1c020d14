"""One client connection of the llhttp worker: bytes in, requests out, each within its bounds.

llhttp in its strict mode parses RFC 9112; this module adds what a server owes beyond syntax: sizes, one Host, no doubt
about where a body ends, and a WSGI environment (PEP 3333) that a client cannot forge.
"""

import io
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools
import msgspec

from inference_api.admission import age

Environ = dict[str, Any]

# Header fields that may come once only: two of them would mean two things to two readers.
SINGLE = {
    "CONTENT_LENGTH",
    "CONTENT_TYPE",
    "HTTP_HOST",
    "HTTP_AUTHORIZATION",
    "HTTP_CONTENT_ENCODING",
    "HTTP_EXPECT",
    "HTTP_INFERENCE_HEADER_CONTENT_LENGTH",
    "HTTP_TRANSFER_ENCODING",
}
MAX_KNOWN_NAMES = 512
# Bytes of chunked framing that come with each byte of a body at most.
MAX_FRAMING = 8
# tcpi_last_data_recv in tcp_info(7), in milliseconds: since the kernel had the newest piece.
LAST_RECEIVED, LAST_RECEIVED_AT = struct.Struct("I"), 52


class Limits(msgspec.Struct, frozen=True):
    max_body_bytes: int
    keepalive_seconds: float
    max_url_bytes: int = 8190
    max_fields: int = 100
    max_head_bytes: int = 64 << 10
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0


class Refusal(Exception):
    """What is wrong with a request before the application sees it; `keeps` if its connection is as good as before.

    `too_much`: of what there is, if that is all that is wrong.
    """

    def __init__(self, status: int, detail: str, *, keeps: bool = False, too_much: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.keeps = keeps
        self.too_much = too_much


class StopParsing(Exception):
    """The rest of the input is of no interest."""


class Request:
    """A request that has arrived whole, or as far as was needed to know that it will be refused."""

    __slots__ = ("environ", "keep_alive", "refusal")

    def __init__(self, environ: Environ, keep_alive: bool, refusal: Refusal | None = None) -> None:
        self.environ = environ
        self.keep_alive = keep_alive
        self.refusal = refusal


class Connection:
    """`requests` are those that have arrived and wait for their answer; `finished` means that no more will be read."""

    def __init__(self, sock: socket.socket, base: Environ, limits: Limits, now: float) -> None:
        self.socket = sock
        self.fd = sock.fileno()
        self.requests: deque[Request] = deque()
        self.finished = False
        self.continues = False
        # The answer that is being sent: what is left of its current piece, the pieces after it, and what comes then.
        self.out: bytes | memoryview = b""
        self.rest: Iterator[bytes] | None = None
        self.closes = False
        self.busy = False
        self.kept = False
        self.events = 0
        self.deadline = now + limits.head_seconds
        self._base = base
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._in_message = False
        self._in_body = False
        self._received = 0
        self._body_bytes = 0

    @property
    def reading(self) -> bool:
        """Whether a request has arrived in part."""
        return self._in_message

    def age(self, request: Request) -> float:
        """Seconds since a request arrived: at NGINX, if that says so, else on this connection."""
        if self.socket.family == socket.AF_UNIX or "HTTP_X_REQUEST_START" in request.environ:
            return age(request.environ)
        milliseconds: int = LAST_RECEIVED.unpack_from(
            self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, LAST_RECEIVED_AT + LAST_RECEIVED.size),
            LAST_RECEIVED_AT,
        )[0]
        return milliseconds / 1000

    def feed(self, data: bytes, now: float) -> None:
        """Parse what arrived; complete requests are appended to `requests`, and so is a refusal, as the last one."""
        was_in_message, was_in_body = self._in_message, self._in_body
        try:
            self._parse(data)
        except Refusal as refusal:
            self.refuse(refusal)
        except StopParsing:
            pass
        if self._in_body and not was_in_body:
            self.deadline = now + self._limits.body_seconds
        elif self._in_message and not was_in_message:
            self.deadline = now + self._limits.head_seconds

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.finished = True  # the request itself has been handled; the offer to change protocols is declined
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None
        except httptools.HttpParserError as error:
            raise Refusal(400, f"malformed HTTP: {error}") from None
        if self._in_message:
            self._received += len(data)
            # SECURITY: headers, and what chunked framing adds to a body: trailers, and 5 bytes for each at the worst.
            if self._received > self._limits.max_head_bytes + (1 + MAX_FRAMING) * self._body_bytes:
                raise Refusal(431, f"headers: expected at most {self._limits.max_head_bytes} bytes, got more")

    def close(self) -> None:
        if self.rest is not None and hasattr(self.rest, "close"):
            self.rest.close()  # lets a generator's `finally` run
        self.socket.close()

    # What httptools calls.

    def on_message_begin(self) -> None:
        self._in_message = True
        self._environ = self._base.copy()
        self._url = b""
        self._fields = 0
        self._received = 0
        self._body: bytes | bytearray = b""
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > self._limits.max_url_bytes:
            raise Refusal(414, f"URL: expected at most {self._limits.max_url_bytes} bytes, got more")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > self._limits.max_fields:
            raise Refusal(431, f"headers: expected at most {self._limits.max_fields} fields, got more")
        if self._in_body:  # SECURITY: a trailer comes after all checks, and nobody reads one
            return
        key = _known_names.get(name) or _environ_key(name)
        if key == DROPPED:
            return
        text = value.decode("latin-1")
        if key in self._environ:
            if key in SINGLE:
                raise Refusal(400, f"header {name.decode('latin-1')}: expected once, got twice")
            text = f"{self._environ[key]},{text}"
        self._environ[key] = text

    def on_headers_complete(self) -> None:
        self._in_body = True
        environ, version = self._environ, self._parser.get_http_version()
        method = self._parser.get_method().decode("latin-1")
        _set_target(environ, self._url)
        environ["REQUEST_METHOD"] = method
        environ["SERVER_PROTOCOL"] = f"HTTP/{version}"
        if version not in ("1.1", "1.0"):
            raise Refusal(505, f"HTTP version: expected 1.1 or 1.0, got {version}")
        if version == "1.1" and "HTTP_HOST" not in environ:
            raise Refusal(400, "header Host: expected once, got none")
        if method == "CONNECT":
            raise Refusal(405, "method CONNECT: this server is no proxy")
        length = environ.get("CONTENT_LENGTH")
        if self._parser.should_upgrade() and (length or "HTTP_TRANSFER_ENCODING" in environ):
            # llhttp takes what follows for the other protocol, so that the body would be lost.
            raise Refusal(501, "header Upgrade: expected none on a request with a body: no other protocol is offered")
        if "HTTP_TRANSFER_ENCODING" in environ and environ.pop("HTTP_TRANSFER_ENCODING").lower() != "chunked":
            raise Refusal(501, "header Transfer-Encoding: expected chunked, got something else")
        if length is not None and int(length) > self._limits.max_body_bytes:
            self._cut_short(int(length))
        expects = environ.get("HTTP_EXPECT")
        if expects is not None:
            if expects.lower() != "100-continue":
                raise Refusal(417, f"header Expect: expected 100-continue, got {expects}")
            self.continues = version == "1.1"

    def on_body(self, chunk: bytes) -> None:
        if not self._body:
            self._body = chunk
        else:  # one array, as tiny chunks would take fifty times their size as objects of their own
            self._body = self._body if isinstance(self._body, bytearray) else bytearray(self._body)
            self._body += chunk
        self._body_bytes += len(chunk)
        if self._body_bytes > self._limits.max_body_bytes:
            self._cut_short(self._body_bytes)

    def on_message_complete(self) -> None:
        self._in_message = self._in_body = False
        self.continues = False
        environ = self._environ
        if self._body:
            environ["CONTENT_LENGTH"] = str(self._body_bytes)
        environ["wsgi.input"] = io.BytesIO(self._body)
        keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        self.requests.append(Request(environ, keep_alive))

    def _cut_short(self, length: int) -> None:
        """Hand over a request without its body: the application sees a length over its own bound, and says so."""
        self._environ["CONTENT_LENGTH"] = str(length)
        self._environ["wsgi.input"] = io.BytesIO()
        self.requests.append(Request(self._environ, False))
        self._finish()
        raise StopParsing

    def refuse(self, refusal: Refusal) -> None:
        environ = self._environ if self._in_message else self._base.copy()
        self.requests.append(Request(environ, False, refusal))
        self._finish()

    def _finish(self) -> None:
        self.finished = True
        self._in_message = self._in_body = self.continues = False


DROPPED = "-"
_known_names: dict[bytes, str] = {}


def _environ_key(name: bytes) -> str:
    """The WSGI key of a header; DROPPED (SECURITY) for a name with an underscore, which could pass for another."""
    if b"_" in name:
        return DROPPED
    key = name.decode("latin-1").upper().replace("-", "_")
    if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        key = f"HTTP_{key}"
    if len(_known_names) < MAX_KNOWN_NAMES:
        _known_names[name] = key
    return key


def _set_target(environ: Environ, url: bytes) -> None:
    """PATH_INFO (percent-decoded once) and QUERY_STRING from the request target, RFC 9112 section 3.2."""
    if not url.startswith(b"/") and b"://" in url:  # absolute-form
        url = b"/" + url.split(b"://", 1)[1].partition(b"/")[2]
    path, _, query = url.partition(b"?")
    environ["PATH_INFO"] = (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1")
    environ["QUERY_STRING"] = query.decode("latin-1")


def base_environ(listener: socket.socket, client: socket.socket, peer: Any) -> Environ:
    """What the environments of all requests on one connection have in common."""
    tcp = client.family != socket.AF_UNIX
    server = listener.getsockname() if tcp else ("localhost", 80)
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "gunicorn.socket": client,
        "SCRIPT_NAME": "",
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "REMOTE_ADDR": peer[0] if tcp else "",
    }
