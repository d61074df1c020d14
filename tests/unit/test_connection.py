"""The llhttp worker's connection: bytes in, requests out."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from inference_api.workers.connection import Connection, Limits, base_environ

LIMITS = Limits(max_body_bytes=10, keepalive_seconds=75, max_url_bytes=20, max_fields=4, max_head_bytes=200)
NOW = 1000.0


@pytest.fixture
def connection() -> Iterator[Connection]:
    ours, theirs = socket.socketpair()
    with theirs:
        yield Connection(ours, base_environ(theirs, ours, ""), LIMITS, NOW)
        ours.close()


def head(*fields: str, first: str = "GET /p HTTP/1.1") -> bytes:
    return "\r\n".join([first, "Host: test", *fields, "", ""]).encode("latin-1")


def environ_of(connection: Connection, data: bytes) -> dict[str, Any]:
    connection.feed(data, NOW)
    [request] = connection.requests
    assert request.refusal is None, request.refusal
    return request.environ


def refusal_of(connection: Connection, data: bytes) -> int:
    connection.feed(data, NOW)
    request = connection.requests[-1]
    assert request.refusal is not None
    assert not request.keep_alive
    assert connection.finished
    return request.refusal.status


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a%2Fb?x=%31", "/a/b", "x=%31"),
        ("/%2561", "/%61", ""),
        ("http://host/a?b", "/a", "b"),
        ("http://host", "/", ""),
        ("/gr%C3%BC", "/gr\xc3\xbc", ""),
        ("*", "*", ""),
    ],
)
def test_the_target_is_decoded_once(connection: Connection, target: str, path: str, query: str) -> None:
    method = "OPTIONS" if target == "*" else "GET"
    environ = environ_of(connection, head(first=f"{method} {target} HTTP/1.1"))
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == (path, query)


def test_headers_become_wsgi_variables(connection: Connection) -> None:
    environ = environ_of(connection, head("X-One: 1", "x-one: 2", "Content-Type: text/plain"))
    assert environ["HTTP_X_ONE"] == "1,2"
    assert environ["CONTENT_TYPE"] == "text/plain"


@pytest.mark.parametrize("name", ["X_Forwarded_For", "Content_Length", "HTTP_HOST", "wsgi.input"])
def test_a_header_can_not_pass_for_another_variable(connection: Connection, name: str) -> None:
    before = dict(connection._base)
    environ = environ_of(connection, head(f"{name}: 7"))
    assert environ.get("HTTP_X_FORWARDED_FOR") is None
    assert environ.get("CONTENT_LENGTH") is None
    assert environ["HTTP_HOST"] == "test"
    assert {key: environ[key] for key in before} == before


@pytest.mark.parametrize(
    "field", ["Host: b", "Authorization: x\r\nAuthorization: y", "Content-Type: a\r\nContent-Type: b"]
)
def test_a_header_that_may_come_once_may_not_come_twice(connection: Connection, field: str) -> None:
    assert refusal_of(connection, head(*field.split("\r\n"))) == 400


def test_a_url_of_the_very_limit_is_taken(connection: Connection) -> None:
    assert environ_of(connection, head(first=f"GET /{'a' * 19} HTTP/1.1"))["PATH_INFO"] == "/" + "a" * 19


def test_a_longer_url_is_refused(connection: Connection) -> None:
    assert refusal_of(connection, head(first=f"GET /{'a' * 20} HTTP/1.1")) == 414


def test_as_many_headers_as_allowed_are_taken(connection: Connection) -> None:
    environ_of(connection, head(*(f"X-{i}: 1" for i in range(3))))


def test_one_header_more_is_refused(connection: Connection) -> None:
    assert refusal_of(connection, head(*(f"X-{i}: 1" for i in range(4)))) == 431


def test_a_header_without_end_is_refused_before_it_ends(connection: Connection) -> None:
    connection.feed(b"GET / HTTP/1.1\r\nX-A: ", NOW)
    for _ in range(20):
        connection.feed(b"a" * 10, NOW)
    assert connection.requests[-1].refusal is not None
    assert connection.requests[-1].refusal.status == 431


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /p HTTP/1.1\r\n\r\n", 400),
        (b"GET /p HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"CONNECT host:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (head("Expect: nothing"), 417),
        (head("Transfer-Encoding: gzip, chunked", first="POST /p HTTP/1.1"), 501),
        (head("Transfer-Encoding: chunked", "Content-Length: 3"), 400),
        (b"nonsense\r\n\r\n", 400),
    ],
)
def test_what_is_refused(connection: Connection, data: bytes, status: int) -> None:
    connection.feed(data, NOW)
    request = connection.requests[-1]
    assert request.refusal is not None
    assert request.refusal.status == status


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_of_the_very_limit_arrives_whole(connection: Connection, framing: str) -> None:
    environ = environ_of(connection, with_body(b"x" * 10, framing))
    assert environ["wsgi.input"].read() == b"x" * 10
    assert environ["CONTENT_LENGTH"] == "10"
    assert "HTTP_TRANSFER_ENCODING" not in environ


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_larger_body_is_left_to_the_application_to_refuse(connection: Connection, framing: str) -> None:
    environ = environ_of(connection, with_body(b"x" * 11, framing))
    assert environ["CONTENT_LENGTH"] == "11"
    assert environ["wsgi.input"].read() == b""
    assert connection.finished
    assert not connection.requests[0].keep_alive


def with_body(body: bytes, framing: str) -> bytes:
    if framing == "chunked":
        return head("Transfer-Encoding: chunked", first="POST /p HTTP/1.1") + b"%x\r\n%b\r\n0\r\n\r\n" % (
            len(body),
            body,
        )
    return head(f"Content-Length: {len(body)}", first="POST /p HTTP/1.1") + body


def test_pipelined_requests_come_out_one_by_one(connection: Connection) -> None:
    connection.feed(head(first="GET /1 HTTP/1.1") + with_body(b"abc", "length") + head(first="GET /3 HTTP/1.1"), NOW)
    assert [request.environ["PATH_INFO"] for request in connection.requests] == ["/1", "/p", "/3"]
    assert connection.requests[1].environ["wsgi.input"].read() == b"abc"


def test_what_follows_a_refused_request_is_not_read(connection: Connection) -> None:
    connection.feed(head("Expect: nothing") + head(first="GET /2 HTTP/1.1"), NOW)
    assert len(connection.requests) == 1


@pytest.mark.parametrize("upgrade", ["foo", "h2c", "websocket"])
def test_an_upgrade_is_declined_and_ends_the_connection(connection: Connection, upgrade: str) -> None:
    connection.feed(head(f"Upgrade: {upgrade}", "Connection: upgrade") + b"other protocol", NOW)
    [request] = connection.requests
    assert request.refusal is None
    assert not request.keep_alive
    assert connection.finished


def test_an_upgrade_with_a_body_is_refused_rather_than_served_without_it(connection: Connection) -> None:
    data = head("Upgrade: foo", "Connection: upgrade", "Content-Length: 3", first="POST /p HTTP/1.1") + b"abc"
    assert refusal_of(connection, data) == 501


def test_the_time_for_a_request_runs_from_its_first_byte_and_for_its_body_from_the_first_of_that(
    connection: Connection,
) -> None:
    assert connection.deadline == NOW + LIMITS.head_seconds
    connection.feed(b"POST /p HTTP/1.1\r\n", NOW + 5)
    connection.feed(b"Host: test\r\n", NOW + 9)
    assert connection.deadline == NOW + 5 + LIMITS.head_seconds, "more bytes buy no more time"
    connection.feed(b"Content-Length: 3\r\n\r\na", NOW + 11)
    assert connection.deadline == NOW + 11 + LIMITS.body_seconds
    connection.feed(b"b", NOW + 20)
    assert connection.deadline == NOW + 11 + LIMITS.body_seconds
    assert connection.reading


CHUNKED = b"POST /p HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_trailer_sets_nothing(connection: Connection) -> None:
    environ = environ_of(connection, CHUNKED + b"1\r\na\r\n0\r\nContent-Encoding: br\r\nX-A: 1\r\n\r\n")
    assert "HTTP_CONTENT_ENCODING" not in environ
    assert "HTTP_X_A" not in environ


def test_a_trailer_without_end_is_refused(connection: Connection) -> None:
    connection.feed(CHUNKED + b"0\r\nX-A: ", NOW)
    for _ in range(50):
        connection.feed(b"a" * 10, NOW)
    refusal = connection.requests[-1].refusal
    assert refusal is not None
    assert refusal.status == 431


def test_chunk_extensions_without_end_are_refused(connection: Connection) -> None:
    connection.feed(CHUNKED + b"1;", NOW)
    for _ in range(50):
        connection.feed(b"a" * 10, NOW)
    refusal = connection.requests[-1].refusal
    assert refusal is not None
    assert refusal.status in (400, 431)


def test_a_body_in_chunks_of_one_byte_arrives_whole(connection: Connection) -> None:
    environ = environ_of(connection, CHUNKED + b"1\r\nx\r\n" * 10 + b"0\r\n\r\n")
    assert environ["wsgi.input"].read() == b"x" * 10
