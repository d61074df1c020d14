"""Whatever NGINX refuses by itself is refused as the API would: JSON of the form that the path's clients read."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edge import SECURITY_HEADERS, Edge, StandIn, answers
from servers import Answer, read_all, wait_until

BODY_LIMIT = 1 << 20  # what the edge under test was told
PREDICT = "/v1/models/scale:predict"
INSTANCES = b'{"instances": [[1, 2, 3]]}'
CHUNK = b"10000\r\n" + bytes(0x10000) + b"\r\n"
# Those of RFC 9110; Python's own depend on its version.
TITLES = {
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    414: "URI Too Long",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}
METHODS = "GET, HEAD, POST, DELETE, OPTIONS"

# The path stands for PATH; each is refused for what is said of it, before the API hears of it.
REFUSED: dict[str, tuple[bytes, int]] = {
    "a Content-Length that is no number": (b"POST PATH HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
    "two Hosts": (b"GET PATH HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "no Host": (b"GET PATH HTTP/1.1\r\n\r\n", 400),
    "NUL in a header": (b"GET PATH HTTP/1.1\r\nHost: a\r\nX-A: \0\r\n\r\n", 400),
    "a path that is encoded twice": (b"GET PATH/%2561 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a method that is not offered": (b"PUT PATH HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405),
    "a method that nobody knows": (b"PURGE PATH HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405),
    "TRACE": (b"TRACE PATH HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    "a body that says it is too large": (
        b"POST PATH HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (BODY_LIMIT + 1),
        413,
    ),
    "a body in pieces that is too large": (
        b"POST PATH HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK * (1 + BODY_LIMIT // 0x10000),
        413,
    ),
    "a header that is too large": (b"GET PATH HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 8200 + b"\r\n\r\n", 431),
    "headers that are too many": (
        b"GET PATH HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-A: %04000d\r\n" % i for i in range(10)) + b"\r\n",
        431,
    ),
    "a transfer coding that is not offered": (
        b"POST PATH HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        501,
    ),
    # Of these the first line itself is wrong.
    "a URL that is too long": (b"GET PATH" + b"a" * 8200 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "a version of HTTP that is not spoken": (b"GET PATH HTTP/9.9\r\nHost: a\r\n\r\n", 505),
    "NUL in the path": (b"GET PATH%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a path above the root": (b"GET PATH/../../.. HTTP/1.1\r\nHost: a\r\n\r\n", 400),
}
# What is not even that leaves no path to go by.
NO_REQUEST: dict[str, tuple[bytes, int]] = {
    "a line that is no request": (b"nonsense\r\nHost: a\r\n\r\n", 400),
    "a method in lower case": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "HTTP/2 that was not agreed on": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
}


def check(answer: Answer | None, path: str, status: int) -> Answer:
    """That `answer` is the error `status`, complete and in the form for `path`."""
    assert answer is not None, "the connection was reset instead"
    assert answer.status == status
    headers = {name: answer.headers.get_all(name) for name in SECURITY_HEADERS}
    assert headers == {name: [value] for name, value in SECURITY_HEADERS.items()}
    if path.startswith("/v2"):
        assert answer.headers.get_all("Content-Type") == ["application/json"]
        assert list(answer.json()) == ["error"]
    else:
        assert answer.headers.get_all("Content-Type") == ["application/problem+json"]
        body = answer.json()
        assert isinstance(body.pop("detail"), str)
        assert body == {
            "type": "about:blank",
            "title": TITLES[status],
            "status": status,
            "request_id": answer.headers["X-Request-ID"],
        }
    assert answer.headers["Retry-After"] == ("1" if status in (429, 503) else None)
    assert answer.headers["Allow"] == (METHODS if status == 405 else None)
    return answer


@pytest.mark.parametrize("path", ["/v1/a", "/v2/a"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_refused_in_json(mirror: Edge, received: list[Any], what: str, path: str) -> None:
    request, status = REFUSED[what]
    check(mirror.ask(request.replace(b"PATH", path.encode())), path, status)
    assert received == []


@pytest.mark.parametrize("what", NO_REQUEST)
def test_what_is_no_request_is_refused_in_json(mirror: Edge, received: list[Any], what: str) -> None:
    request, status = NO_REQUEST[what]
    check(mirror.ask(request), "/", status)
    assert received == []


def test_what_is_for_operators_is_not_there(mirror: Edge, received: list[Any]) -> None:
    for method in ("GET", "POST", "HEAD", "DELETE", "OPTIONS"):
        answer = mirror.request(method, "/metrics", headers={"Authorization": "Bearer a"})
        if method == "HEAD":
            assert (answer.status, answer.body) == (404, b"")
        else:
            check(answer, "/metrics", 404)
    assert received == []


@pytest.mark.parametrize("path", ["/v2/repository/models/scale/load", "/oauth2/token", "/.well-known/jwks.json"])
def test_who_may_do_what_is_left_to_the_api(mirror: Edge, received: list[Any], path: str) -> None:
    for fields in ({}, {"Authorization": "Bearer a"}, {"Authorization": "Basic a"}):
        assert mirror.post(path, b"{}", fields).status == 200
    assert [request["target"] for request in received] == [path] * 3
    sent = [dict(request["headers"]).get("Authorization") for request in received]
    assert sent == [None, "Bearer a", "Basic a"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/%25", 400), ("GET", "/metrics", 404), ("PURGE", "/v2", 405)]
)
def test_what_is_refused_over_http2_is_refused_in_json(mirror: Edge, method: str, path: str, status: int) -> None:
    with mirror.http2() as client:
        check(client.request(method, path), path, status)
        check(client.request(method, path), path, status)


@pytest.mark.parametrize("path", ["/v1/a", "/v2/a"])
def test_clear_text_where_tls_is_spoken_is_refused_in_json(mirror: Edge, path: str) -> None:
    with mirror.plain(20) as client:
        client.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        [answer] = answers(read_all(client))
    check(answer, path, 400)


def test_a_malformed_request_in_clear_text_is_refused_in_json(mirror: Edge) -> None:
    with socket.create_connection(("127.0.0.1", mirror.clear_port), 20) as client:
        client.sendall(b"GET /v1/a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        [answer] = answers(read_all(client))
    check(answer, "/v1/a", 400)


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_a_body_of_the_very_limit_is_taken_and_one_byte_more_is_not(edge: Edge, http2: bool) -> None:
    def post(path: str, body: bytes) -> Answer | None:
        if not http2:
            return edge.post(path, body)
        with edge.http2() as client:
            return client.request("POST", path, body)

    taken = post(PREDICT, INSTANCES.ljust(BODY_LIMIT))
    assert taken is not None
    assert (taken.status, taken.json()["predictions"]) == (200, [[2, 4, 6]])
    for path in (PREDICT, "/v2/models/scale/infer"):
        refused = check(post(path, INSTANCES.ljust(BODY_LIMIT + 1)), path, 413)
        assert f"at most {BODY_LIMIT} bytes" in refused.body.decode()


# Those who are too slow, or too many, or find nobody.


def test_who_is_too_slow_to_ask_is_cut_off(mirror: Edge, received: list[Any]) -> None:
    """NGINX has no words for them, only a line in its log: it closes."""
    slow = {
        "slow-to-say-what": b"GET /v1/a HTTP/1.1\r\nHost: a\r\nX-Request-ID: slow-to-say-what\r\n",
        "slow-to-send-the-body": b"POST /v1/a HTTP/1.1\r\nHost: a\r\nX-Request-ID: slow-to-send-the-body\r\n"
        b"Content-Length: 9\r\n\r\nabc",
    }
    clients = [mirror.connect(60) for _ in slow]
    for client, part in zip(clients, slow.values(), strict=True):
        client.sendall(part)
    for client in clients:
        assert read_all(client) == b""
        client.close()
    assert {mirror.logged(request_id)["status"] for request_id in slow} == {408}
    assert received == []


@pytest.fixture
def silent(tls: Path, tmp_path: Path) -> Iterator[tuple[Edge, StandIn]]:
    """An edge with small limits, before an API that takes requests and never answers."""
    settings = {"tiercel_request_timeout_ms": 1, "tiercel_hang_grace_ms": 1, "edge_connections": 3}
    with StandIn(tmp_path / "api.sock", "wait") as api, Edge(tmp_path / "api.sock", tls, tmp_path, **settings) as edge:
        yield edge, api


def test_who_has_too_many_requests_at_a_time_is_told_to_wait(silent: tuple[Edge, StandIn]) -> None:
    edge, api = silent
    busy = [edge.http() for _ in range(3)]
    for connection in busy:
        connection.request("POST", PREDICT, INSTANCES)
    wait_until(lambda: len(api.received) == len(busy), "as many requests as allowed are being answered")
    for path in (PREDICT, "/v2/models/scale/infer"):
        check(edge.post(path, INSTANCES), path, 429)
    for connection in busy:
        connection.close()


def test_who_asks_too_often_is_told_to_wait_but_may_ask_how_it_is(tls: Path, tmp_path: Path) -> None:
    with (
        StandIn(tmp_path / "api.sock") as api,
        Edge(tmp_path / "api.sock", tls, tmp_path, edge_requests_per_second=1) as edge,
    ):
        for path in (PREDICT, "/v2/models/scale/infer"):
            wait_until(lambda path=path: edge.post(path, INSTANCES).status == 429, "the limit is reached")
            check(edge.post(path, INSTANCES), path, 429)
        forwarded = len(api.received)
        for _ in range(20):
            assert edge.get("/v2/health/ready").status == 200
        assert len(api.received) == forwarded + 20


def test_an_api_that_is_not_there_is_said_to_be_unavailable(tls: Path, tmp_path: Path) -> None:
    with Edge(tmp_path / "api.sock", tls, tmp_path) as edge:
        for path in (PREDICT, "/v2/models/scale/infer", "/v1/jobs", "/v2/health/ready"):
            check(edge.post(path, INSTANCES), path, 503)
        with edge.http2() as client:
            check(client.request("POST", PREDICT, INSTANCES), PREDICT, 503)
        assert edge.get("/metrics").status == 404


def test_an_api_that_does_not_answer_is_given_up_and_not_asked_again(silent: tuple[Edge, StandIn]) -> None:
    edge, api = silent
    connections = {path: edge.http() for path in (PREDICT, "/v2/models/scale/infer", "/v1/jobs")}
    for path, connection in connections.items():
        connection.request("POST", path, INSTANCES)
    for path, connection in connections.items():
        answer = check(Answer(connection.getresponse()), path, 504)
        assert "did not answer in 5002 ms" in answer.body.decode()
        connection.close()
    assert sorted(request["target"] for request in api.received) == sorted(connections)
