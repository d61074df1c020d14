"""The llhttp worker's answers: a WSGI application's, on the wire."""

import io
import json
import math
import time
from collections.abc import Iterable
from typing import Any

import pytest
import structlog

from inference_api.workers.connection import Refusal, Request
from inference_api.workers.response import CLOSE, JOINED_BYTES, Response, respond


def answer(
    status: str = "200 OK",
    headers: list[tuple[str, str]] | None = None,
    body: Iterable[bytes] = (b"body",),
    method: str = "GET",
    protocol: str = "HTTP/1.1",
    keep_alive: bool = True,
) -> Response:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(status, headers or [])
        return body if not isinstance(body, tuple) else list(body)

    environ = {"REQUEST_METHOD": method, "SERVER_PROTOCOL": protocol, "PATH_INFO": "/v2", "wsgi.input": io.BytesIO()}
    return respond(app, Request(environ, keep_alive), keep_within=math.inf)


def wire(response: Response) -> tuple[str, dict[str, str], bytes]:
    data = response.data + b"".join(response.rest or ())
    head, _, body = data.partition(b"\r\n\r\n")
    first, *fields = head.decode("latin-1").split("\r\n")
    return first, {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}, body


def test_a_whole_body_has_its_length() -> None:
    first, fields, body = wire(answer())
    assert (first, fields["content-length"], body) == ("HTTP/1.1 200 OK", "4", b"body")
    assert "connection" not in fields
    assert fields["date"].endswith("GMT")


def test_the_length_that_the_application_gives_is_not_given_twice() -> None:
    assert answer(headers=[("Content-Length", "4")]).data.lower().count(b"content-length") == 1


def test_a_large_body_is_not_copied_behind_the_head() -> None:
    response = answer(body=(b"x" * (JOINED_BYTES + 1),))
    assert len(response.data) < 1000
    assert wire(response)[2] == b"x" * (JOINED_BYTES + 1)


@pytest.mark.parametrize(("keep_alive", "expected"), [(True, None), (False, "close")])
def test_the_connection_header_says_whether_it_stays(keep_alive: bool, expected: str | None) -> None:
    response = answer(keep_alive=keep_alive)
    assert response.close is not keep_alive
    assert wire(response)[1].get("connection") == expected


@pytest.mark.parametrize(("seconds", "kept"), [(0.002, False), (0.0, True)])
def test_an_answer_that_took_long_ends_its_connection(seconds: float, kept: bool) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass
        start_response("200 OK", [])
        return []

    environ = {"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1", "PATH_INFO": "/v2", "wsgi.input": io.BytesIO()}
    response = respond(app, Request(environ, keep_alive=True), keep_within=0.001)
    assert response.close is not kept
    assert (b"\r\nConnection: close\r\n" in response.data) is not kept


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_an_answer_without_a_body_has_none_and_no_length(status: str) -> None:
    _, fields, body = wire(answer(status=status, headers=[("Content-Length", "4")]))
    assert body == b""
    assert "content-length" not in fields


def test_head_keeps_the_length_of_get() -> None:
    _, fields, body = wire(answer(method="HEAD"))
    assert body == b""
    assert fields["content-length"] == "4"


def test_a_stream_is_chunked() -> None:
    _, fields, body = wire(answer(body=iter([b"ab", b"", b"c"])))
    assert fields["transfer-encoding"] == "chunked"
    assert body == b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"


def test_a_stream_of_known_length_is_not_chunked() -> None:
    _, fields, body = wire(answer(body=iter([b"ab", b"c"]), headers=[("Content-Length", "3")]))
    assert "transfer-encoding" not in fields
    assert body == b"abc"


def test_a_stream_to_http_1_0_ends_with_the_connection() -> None:
    response = answer(body=iter([b"ab", b"c"]), protocol="HTTP/1.0")
    assert response.close
    _, fields, body = wire(response)
    assert "transfer-encoding" not in fields
    assert fields["connection"] == "close"
    assert body == b"abc"


def test_a_stream_is_closed_when_it_has_ended() -> None:
    class Stream(list[bytes]):
        closed = False

        def __iter__(self) -> Any:
            return iter((b"a",))

        def close(self) -> None:
            self.closed = True

    stream = Stream()

    class Wrapped:
        def __iter__(self) -> Any:
            return iter(stream)

        def close(self) -> None:
            stream.close()

    wire(answer(body=Wrapped()))
    assert stream.closed


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\rb", "a\0b", "a\r\n\r\n<html>"])
@pytest.mark.parametrize("where", ["name", "value"])
def test_a_header_with_a_control_character_is_an_error_and_never_sent(value: str, where: str) -> None:
    header = ("X-A", value) if where == "value" else (value, "1")
    with structlog.testing.capture_logs() as logs:
        first, fields, _ = wire(answer(headers=[header]))
    assert first == "HTTP/1.1 500 Internal Server Error"
    assert "x-evil" not in fields
    assert "control character" in str(logs[0]["exc_info"])


def test_an_application_that_fails_is_logged_and_answered_without_its_traceback() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        raise RuntimeError("secret")

    environ = {"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1", "PATH_INFO": "/v2"}
    with structlog.testing.capture_logs() as logs:
        response = respond(app, Request(environ, keep_alive=True), keep_within=math.inf)
    assert b"500" in response.data
    assert b"secret" not in response.data
    assert response.close
    assert "secret" in str(logs[0]["exc_info"])


def test_a_refusal_is_answered_in_the_form_of_its_path() -> None:
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/v2/x"}
    response = respond(lambda *_: [], Request(environ, keep_alive=False, refusal=Refusal(400, "why")), CLOSE)
    first, fields, body = wire(response)
    assert (first, fields["content-type"], body) == ("HTTP/1.1 400 Bad Request", "application/json", b'{"error":"why"}')
    assert response.close


@pytest.mark.parametrize(("given", "kept"), [("a-request-of-mine", True), ("short", False), ("", False)])
def test_a_refusal_carries_the_id_of_the_request(given: str, kept: bool) -> None:
    """As far as the request was read; what is not well formed is not repeated."""
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/v1", "HTTP_X_REQUEST_ID": given}
    response = respond(lambda *_: [], Request(environ, keep_alive=False, refusal=Refusal(503, "why")), CLOSE)
    _, fields, body = wire(response)
    assert fields.get("x-request-id") == (given if kept else None)
    assert json.loads(body)["request_id"] == (given if kept else "")
    assert fields["retry-after"] == "1"
