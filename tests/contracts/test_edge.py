"""The way through NGINX: TLS, both versions of HTTP, one id for each request, and a line in the log for each."""

import http.client
import json
import re
import ssl
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from edge import SECURITY_HEADERS, Edge, answers
from servers import Answer

PREDICT = "/v1/models/scale:predict"
INSTANCES = b'{"instances": [[1, 2, 3]]}'
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
# A path for each who may answer: the API, the API with an error, and NGINX itself; in either form of errors.
ANSWERED_BY = {
    "the API": ("POST", PREDICT, 200),
    "the API in v2": ("GET", "/v2/models/scale", 200),
    "the API, which knows no such model": ("POST", "/v1/models/nobody:predict", 404),
    "the API in v2, which knows no such model": ("GET", "/v2/models/nobody", 404),
    "NGINX, which hides": ("GET", "/metrics", 404),
    "NGINX, which refuses": ("GET", "/v2/models/%2561", 400),
}
KEPT = ["12345678", "a" * 64, "0af76519-16CD-43dd-8448-eb211c80319c"]
REPLACED = {
    "nothing": "",
    "7 characters": "1234567",
    "65 characters": "a" * 65,
    "a space": "12345678 9",
    "an underscore": "12345678_9",
    "a quote": '12345678"9',
    "a tab": "12345678\t9",
    "a control character": "12345678\x0b9",
    "a letter that is not ASCII": "12345678\xe9",
    "a format of NGINX": "$request_id",
}


@pytest.fixture(params=ANSWERED_BY)
def question(request: pytest.FixtureRequest) -> tuple[str, str, int]:
    return ANSWERED_BY[request.param]


def ask(edge: Edge, question: tuple[str, str, int], **headers: str) -> Answer:
    method, path, status = question
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = edge.request(method, path, INSTANCES if method == "POST" else None, fields)
    assert answer.status == status
    return answer


def test_a_prediction_is_answered_over_https(edge: Edge) -> None:
    answer = edge.post(PREDICT, INSTANCES)
    assert (answer.status, answer.json()["predictions"]) == (200, [[2, 4, 6]])


def test_predictions_are_answered_over_http2(edge: Edge) -> None:
    with edge.http2() as client:
        for i in range(5):
            answer = client.request("POST", PREDICT, json.dumps({"instances": [[i, 2, 3]]}).encode())
            assert answer is not None
            assert (answer.status, answer.json()["predictions"]) == (200, [[2 * i, 4, 6]])


def test_a_connection_is_kept_across_answers_of_the_api_and_of_nginx(edge: Edge) -> None:
    connection = edge.http()
    for method, path, status in list(ANSWERED_BY.values())[:5] * 2:  # a refusal closes
        connection.request(method, path, INSTANCES if method == "POST" else None)
        assert Answer(connection.getresponse()).status == status
        assert connection.sock, path
    connection.close()


@pytest.mark.parametrize("path", ["/metrics", "/v2/models/scale", "/v1/models/nobody"])
def test_head_brings_no_body(edge: Edge, path: str) -> None:
    head, get = (f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n".encode() for method in ("HEAD", "GET"))
    data = edge.raw(head + b"\r\n" + get + b"Connection: close\r\n\r\n", timeout=20)
    first, _, rest = data.partition(b"\r\n\r\n")
    [answer] = answers(rest)
    assert f"content-length: {len(answer.body)}\r\n".encode() in first.lower() + b"\r\n"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_clear_text_is_sent_to_https_with_its_path_and_query(edge: Edge, method: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", edge.clear_port, timeout=20)
    body = INSTANCES if method == "POST" else None
    connection.request(method, "/v1/models/scale:predict?a=%20b&c", body, {"Host": "localhost"})
    answer = Answer(connection.getresponse())
    connection.close()
    assert answer.status == 308
    assert answer.headers["Location"] == f"https://localhost:{edge.port}/v1/models/scale:predict?a=%20b&c"


def test_a_well_formed_request_id_is_kept(edge: Edge, question: tuple[str, str, int]) -> None:
    for given in KEPT:
        answer = ask(edge, question, X_Request_ID=given)
        assert answer.headers.get_all("X-Request-ID") == [given]
        if "problem" in answer.headers["Content-Type"]:
            assert answer.json()["request_id"] == given


def test_a_request_without_an_id_gets_one_of_its_own(edge: Edge, question: tuple[str, str, int]) -> None:
    ids = {ask(edge, question).headers["X-Request-ID"] for _ in range(3)}
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", given) for given in ids)


@pytest.mark.parametrize("what", REPLACED)
def test_a_request_id_that_is_not_well_formed_is_replaced(edge: Edge, what: str) -> None:
    for question in ANSWERED_BY.values():
        [returned] = ask(edge, question, X_Request_ID=REPLACED[what]).headers.get_all("X-Request-ID") or []
        assert re.fullmatch("[0-9a-f]{32}", returned)


@pytest.mark.parametrize(("first", "second"), [("a" * 32, "b" * 32), ("a" * 7, "b" * 32), ("a" * 32, "b\x0b")])
def test_of_two_request_ids_everybody_hears_the_same_one(
    mirror: Edge, received: list[dict[str, Any]], first: str, second: str
) -> None:
    """NGINX before 1.23 does not tell a second one; whichever it is, it is well formed and the same everywhere."""
    lines = f"GET /v1/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-ID: {first}\r\nX-Request-ID: {second}"
    [returned] = mirror.ask(f"{lines}\r\n\r\n".encode("latin-1")).headers.get_all("X-Request-ID") or []
    assert re.fullmatch("[A-Za-z0-9-]{8,64}", returned)
    assert returned != second
    assert [value for name, value in received[0]["headers"] if name == "X-Request-ID"] == [returned]
    assert mirror.logged(returned)["status"] == 200


def test_every_answer_carries_the_security_headers(edge: Edge, question: tuple[str, str, int]) -> None:
    headers = ask(edge, question).headers
    assert {name: headers.get_all(name) for name in SECURITY_HEADERS} == {
        name: [value] for name, value in SECURITY_HEADERS.items()
    }
    assert headers["Server"] == "nginx", "and no version"


def test_the_log_has_a_line_about_a_prediction_without_its_query(edge: Edge) -> None:
    fields = {"traceparent": TRACE, "User-Agent": 'a "quoted"\\ agent', "X-Request-ID": "logged-prediction"}
    assert edge.post(f"{PREDICT}?token=secret&a=%25", INSTANCES, fields).status == 200
    line = edge.logged("logged-prediction")
    assert list(line)[:5] == ["timestamp", "level", "logger", "event", "service"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
    assert abs(datetime.fromisoformat(line["timestamp"]) - datetime.now(UTC)) < timedelta(minutes=1)
    expected = {"level": "info", "logger": "nginx.access", "event": "request", "service": "nginx"}
    expected |= {"limit_requests": "PASSED", "limit_connections": "PASSED"}
    assert line.items() >= expected.items()
    expected = {"method": "POST", "path": PREDICT, "status": 200, "upstream_status": "200"}
    assert line.items() >= expected.items()
    assert line["trace_id"] == TRACE[3:35]
    assert line["upstream"].startswith("unix:/")
    assert line["user_agent"] == 'a "quoted"\\ agent'
    assert line["tls"] in ("TLSv1.2", "TLSv1.3")
    for name in ("upstream_connect_seconds", "upstream_seconds", "seconds"):
        assert isinstance(line[name], float)
        assert 0 <= line[name] <= 30
    assert min(line["request_bytes"], line["response_bytes"]) > len(INSTANCES)
    assert "secret" not in edge.log()


def test_every_line_of_the_log_is_json_whatever_it_is_about(mirror: Edge) -> None:
    for line in (
        b"GET /v1/\xff?a",
        b"nonsense",
        b"GET /v1/%00",
        b'GET /v1/"\\',
        b"PURGE /v1/a",
        b"GET /v1/a HTTP/9.9\r\n",
    ):
        mirror.raw(line + b' HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUser-Agent: \xff"\\\x01\r\n\r\n', timeout=20)
    mirror.raw(b"GET /v1/a\r\n")  # HTTP/0.9
    for name in ("Not-In-Lower-Case", "user-agent"):
        with mirror.http2() as client:
            client.request("GET", "/v1/a", b"", (name, "\0"))
    with mirror.connect() as client:
        client.sendall(b"POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")  # and no more
    mirror.get("/v1/a", {"X-Request-ID": "after-all-of-them"})
    assert mirror.logged("after-all-of-them")["status"] == 200
    lines = mirror.access_log()
    assert len(lines) >= 10
    assert {type(line["status"]) for line in lines} == {int}


def test_the_log_has_the_method_of_what_nginx_refused_itself(edge: Edge) -> None:
    refused = [("POST", "/metrics", 404), ("PUT", PREDICT, 405), ("HEAD", "/metrics", 404), ("GET", "/v2/%25", 400)]
    for method, path, status in refused:
        answer = edge.request(method, f"{path}?token=secret", None, {"X-Request-ID": f"refused-{method}"})
        assert answer.status == status
    for method, path, status in refused:
        line = edge.logged(f"refused-{method}")
        assert (
            line.items()
            >= {"method": method, "path": path, "status": status, "upstream": "", "upstream_seconds": None}.items()
        )


def test_probes_are_answered_and_not_logged(edge: Edge) -> None:
    for probe in ("live", "ready"):
        assert edge.get(f"/v2/health/{probe}", {"X-Request-ID": f"probe-{probe}"}).status == 200
    edge.get("/v2", {"X-Request-ID": "after-the-probes"})
    edge.logged("after-the-probes")
    assert edge.access_log("probe-") == []


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_current_versions_of_tls_are_spoken(edge: Edge, version: str) -> None:
    context = edge.context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    connection = http.client.HTTPSConnection("localhost", edge.port, timeout=20, context=context)
    connection.request("GET", "/v2")
    assert Answer(connection.getresponse()).status == 200
    connection.close()


def test_tls_1_1_is_refused(edge: Edge) -> None:
    context = edge.context()
    context.set_ciphers("ALL:@SECLEVEL=0")  # else our own side would refuse it
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    connection = http.client.HTTPSConnection("localhost", edge.port, timeout=20, context=context)
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        connection.connect()
    connection.close()


def test_the_certificate_is_for_a_name_and_from_the_ca(edge: Edge) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(edge.plain(), server_hostname="localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        edge.context().wrap_socket(edge.plain(), server_hostname="somebody.else")
