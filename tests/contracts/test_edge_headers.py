"""Who the client is, and what its request is called, the API hears from NGINX alone, whatever a client says."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from edge import ROOT, Canary, Edge, StandIn
from servers import wait_until

PREDICT = "/v1/models/scale:predict"
INSTANCES = b'{"instances": [[1, 2, 3]]}'
FORGED: dict[str, list[str]] = {
    "nothing": [],
    "X-Forwarded-For": ["X-Forwarded-For: 10.0.0.1"],
    "X-Forwarded-For, twice": ["X-Forwarded-For: 10.0.0.1", "x-forwarded-for: 10.0.0.2, 10.0.0.3"],
    "X-Forwarded-For, of 8 KB": ["X-Forwarded-For: " + "10.0.0.1, " * 800],
    "X-Forwarded-For, empty": ["X-Forwarded-For:"],
    "X-Forwarded-For, folded": ["X-Forwarded-For:", "X-A: a"],
    "X_Forwarded_For": ["X_Forwarded_For: 10.0.0.1", "X-Forwarded_For: 10.0.0.1", "HTTP_X_FORWARDED_FOR: 10.0.0.1"],
    "X-Real-IP": ["X-Real-IP: 10.0.0.1", "X_Real_IP: 10.0.0.1"],
    "Forwarded": ["Forwarded: for=10.0.0.1;proto=http;host=other"],
    "X-Forwarded-Proto": ["X-Forwarded-Proto: http", "X-Forwarded-Proto: ftp"],
    "X-Forwarded-Host": ["X-Forwarded-Host: other", "X-Forwarded-Port: 80"],
    "X-Request-Start": ["X-Request-Start: t=1.000", "X-Request-Start: t=99999999999.000"],
    "REMOTE_ADDR": ["REMOTE_ADDR: 10.0.0.1", "REMOTE-USER: root", "SCRIPT_NAME: /a", "PATH_INFO: /metrics"],
    "a request for NGINX to leave them out": [
        "Connection: X-Forwarded-For, X-Real-IP, X-Request-ID, X-Forwarded-Proto"
    ],
    "a request to do so, and forgeries": ["Connection: close, X-Forwarded-For", "X-Forwarded-For: 10.0.0.1"],
    "Proxy-Connection": ["Proxy-Connection: X-Forwarded-For", "Keep-Alive: X-Forwarded-For", "TE: trailers"],
}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NO_TRACES: dict[str, str] = {
    "nothing": "",
    "words": "garbage",
    "upper case": TRACE.upper(),
    "another version": "01" + TRACE[2:],
    "the version that is none": "ff" + TRACE[2:],
    "more behind it": TRACE + "-00",
    "less": TRACE[:-1],
    "two in one": f"{TRACE}, {TRACE}",
    "a line break in it": TRACE[:-2] + "\\r\\n",
    "a trace of zeros": f"00-{'0' * 32}-b7ad6b7169203331-01",
    "a parent of zeros": f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
}
# Of one kind or another; any worker may refuse what is too much for its parser.
MANY: dict[str, list[str]] = {
    "100": [f"X-{i}: a" for i in range(85)],
    "101 and more": [f"X-{i}: a" for i in range(110)],
    "1000": [f"X-{i}: a" for i in range(1000)],
    "the same one 300 times": ["X-A: a"] * 300,
    "32 KB": [f"X-{i}: {'a' * 980}" for i in range(32)],
    "100 of 8 KB": [f"X-{i}: {'a' * 8000}" for i in range(100)],
    "one of 8 KB": ["X-A: " + "a" * 8150],
    "one of 9 KB": ["X-A: " + "a" * 9000],
    "one name of 8 KB": ["X-" + "a" * 8000 + ": a"],
    "Authorization, twice": ["Authorization: Bearer a", "Authorization: Bearer b"],
    "Content-Type, twice": ["Content-Type: application/json", "Content-Type: text/plain"],
    "X-Forwarded-Ssl": ["X-Forwarded-Ssl: off", "X-Forwarded-Protocol: http"],
}


def head(*fields: str, close: bool = True) -> bytes:
    lines = [f"POST {PREDICT} HTTP/1.1", "Host: localhost", f"Content-Length: {len(INSTANCES)}", *fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def values(request: dict[str, Any], name: str) -> list[str]:
    return [value for key, value in request["headers"] if key.lower() == name.lower()]


def check_identity(request: dict[str, Any], returned: str) -> None:
    """That what reached the API of its client is NGINX's own, and once."""
    assert values(request, "X-Forwarded-For") == ["127.0.0.1"]
    assert values(request, "X-Real-IP") == ["127.0.0.1"]
    assert values(request, "X-Forwarded-Proto") == ["https"]
    assert values(request, "X-Request-ID") == [returned]
    assert values(request, "Host") == ["localhost"]
    [start] = values(request, "X-Request-Start")
    assert re.fullmatch(r"t=[0-9]{10}\.[0-9]{3}", start)
    assert start != "t=1.000"
    for name in ("X-Forwarded-Host", "X-Forwarded-Port", "Forwarded", "Connection"):
        assert values(request, name) == []
    assert not [name for name, _ in request["headers"] if "_" in name]
    assert "10.0.0." not in str(request["headers"])


@pytest.mark.parametrize("what", FORGED)
def test_a_client_does_not_say_who_it_is(mirror: Edge, received: list[dict[str, Any]], what: str) -> None:
    answer = mirror.ask(head(*FORGED[what]) + INSTANCES)
    assert answer.status == 200
    check_identity(received[0], answer.headers["X-Request-ID"])


@pytest.mark.parametrize("what", FORGED)
def test_a_client_does_not_say_who_it_is_over_http2(mirror: Edge, received: list[dict[str, Any]], what: str) -> None:
    fields = [field.lower().split(":", 1) for field in FORGED[what]]
    with mirror.http2() as client:
        answer = client.request("POST", PREDICT, INSTANCES, *[(name, value.strip()) for name, value in fields])
    assert answer is not None
    assert answer.status == 200
    check_identity(received[0], answer.headers["X-Request-ID"])


STARTED = re.compile(r"00-(?P<trace>(?P<span>[0-9a-f]{16})[0-9a-f]{16})-(?P=span)-0[01]")


def check_started(request: dict[str, Any]) -> str:
    """That the edge started a trace for a request, by whose mark the API knows; its id."""
    [trace] = values(request, "traceparent")
    started = STARTED.fullmatch(trace)
    assert started, trace
    assert values(request, "tracestate") == ["tiercel=edge"]
    return started["trace"]


@pytest.mark.parametrize("what", NO_TRACES)
def test_a_trace_that_is_none_is_not_passed_on(mirror: Edge, received: list[dict[str, Any]], what: str) -> None:
    """Nor is what would belong to it: one of the edge's own takes its place."""
    fields = {"traceparent": NO_TRACES[what], "tracestate": "other=1"}
    answer = mirror.post(PREDICT, INSTANCES, fields if NO_TRACES[what] else {"tracestate": "other=1"})
    assert answer.status == 200
    trace = check_started(received[0])
    assert mirror.logged(answer.headers["X-Request-ID"])["trace_id"] == trace
    assert trace == answer.headers["X-Request-ID"], "two ids that the edge makes are one"


def test_traces_that_start_here_differ_whatever_the_requests_are_called(
    mirror: Edge, received: list[dict[str, Any]]
) -> None:
    for _ in range(3):
        assert mirror.get("/v1/models", {"X-Request-ID": "the-same-each-time"}).status == 200
    assert len({check_started(request) for request in received}) == 3


def test_a_trace_is_passed_on_once(mirror: Edge, received: list[dict[str, Any]]) -> None:
    other = TRACE.replace("0af7", "1bf7")
    for fields in ([f"traceparent: {TRACE}"], [f"traceparent: {TRACE}", f"TraceParent: {other}"]):
        assert mirror.ask(head(*fields) + INSTANCES).status == 200
    first, second = (values(request, "traceparent") for request in received)
    assert first == [TRACE]
    if second != [TRACE]:  # NGINX from 1.23 on sees two as one that is none
        check_started(received[1])


@pytest.mark.parametrize(
    ("state", "passed_on"),
    [
        ("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", True),
        ("a" * 253 + "=" + "b" * 256, True),
        ("a=" + "b" * 511, False),
        ("a=\xe9", False),
        ("", False),
        ("tiercel=edge", False),
        ("rojo=00f067aa0ba902b7, tiercel = edge", False),
        ("tiercel=edge,rojo=00f067aa0ba902b7", False),
        ("|tiercel=edge", False),
    ],
)
def test_no_client_says_that_its_trace_starts_here(
    mirror: Edge, received: list[dict[str, Any]], state: str, passed_on: bool
) -> None:
    answer = mirror.post(PREDICT, INSTANCES, {"traceparent": TRACE, "tracestate": state})
    assert answer.status == 200
    assert values(received[0], "traceparent") == [TRACE]
    assert values(received[0], "tracestate") == ([state] if passed_on else [])


@pytest.mark.parametrize(("ratio", "flags"), [("0", {"00"}), ("1", {"01"}), ("1.0", {"01"}), (".5", {"00", "01"})])
def test_the_share_of_traces_that_are_kept_is_set(tls: Path, tmp_path: Path, ratio: str, flags: set[str]) -> None:
    with (
        StandIn(tmp_path / "api.sock") as api,
        Edge(tmp_path / "api.sock", tls, tmp_path, tiercel_trace_ratio=ratio) as edge,
    ):
        connection = edge.http()
        for _ in range(64):
            connection.request("GET", "/v1/models")
            assert connection.getresponse().read()
        connection.close()
        traces = [values(request, "traceparent")[0] for request in api.received]
    assert {trace[-2:] for trace in traces} == flags


@pytest.mark.parametrize("ratio", ["1.01", "2", "-0.1", "1e-2", "one", "0.5%", "0,5", ".", "1;"])
def test_a_share_that_is_none_is_named(tmp_path: Path, ratio: str) -> None:
    environment = {"EDGE_RUN_DIR": str(tmp_path), "TIERCEL_TRACE_RATIO": ratio}
    command = ["sh", str(ROOT / "nginx/start.sh"), "check"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"start.sh: TIERCEL_TRACE_RATIO: expected a number from 0 to 1, got {ratio}\n"


def test_of_two_authorizations_at_most_one_is_passed_on(mirror: Edge, received: list[dict[str, Any]]) -> None:
    """Else those who check it and those who use it might not mean the same one."""
    answer = mirror.ask(head("Authorization: Bearer one", "authorization: Bearer other") + INSTANCES)
    assert answer.status in (200, 400)
    assert [values(request, "Authorization") for request in received] in ([], [["Bearer one"]])
    received.clear()
    assert mirror.ask(head("Authorization: Bearer one") + INSTANCES).status == 200
    assert values(received[0], "Authorization") == ["Bearer one"]
    assert mirror.ask(head() + INSTANCES).status == 200
    assert values(received[1], "Authorization") == []


def test_a_forged_address_evades_no_limit(tls: Path, tmp_path: Path) -> None:
    with StandIn(tmp_path / "api.sock"), Edge(tmp_path / "api.sock", tls, tmp_path, edge_requests_per_second=1) as edge:
        addresses = iter(range(1000))

        def is_refused() -> bool:
            address = f"10.0.0.{next(addresses)}"
            return edge.get("/v1/a", {"X-Forwarded-For": address, "X-Real-IP": address}).status == 429

        wait_until(is_refused, "the limit is reached, whatever the client says that it is")


@pytest.mark.parametrize("what", [*FORGED, *MANY])
def test_a_worker_is_none_the_worse_for_headers(edge: Edge, canary: Canary, what: str) -> None:
    with canary.singing():
        answer = edge.ask(head(*(FORGED | MANY)[what]) + INSTANCES)
        assert answer.status in ((200, 400, 415, 431) if what in MANY else (200,))
        if answer.status == 200:
            assert answer.json()["predictions"] == [[2, 4, 6]]
