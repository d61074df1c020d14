"""However a path or a method is spelt: what is for operators is reached by nobody who comes through NGINX."""

from collections.abc import Callable

import pytest
from edge import Edge
from servers import Answer, Server

LOAD, UNLOAD = "/v2/repository/models/half/load", "/v2/repository/models/half/unload"
METRICS = "/metrics"


def encoded(text: str, percent: str = "%") -> str:
    return "".join(character if character == "/" else f"{percent}{ord(character):02x}" for character in text)


def inside(path: str, separator: str) -> str:
    """The path with other separators than the first "/"."""
    return "/" + path[1:].replace("/", separator)


VARIANTS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "encoded": encoded,
    "encoded twice": lambda path: encoded(path, "%25"),
    "encoded three times": lambda path: encoded(path, "%2525"),
    "one letter encoded": lambda path: f"/%{ord(path[1]):x}{path[2:]}",
    "one letter encoded twice": lambda path: f"/%25{ord(path[1]):x}{path[2:]}",
    "%u002f": lambda path: inside(path, "%u002f"),
    "%2f": lambda path: inside(path, "%2f"),
    "%2F": lambda path: inside(path, "%2F"),
    "%252f": lambda path: inside(path, "%252f"),
    "%c0%af": lambda path: inside(path, "%c0%af"),
    "a slash of full width": lambda path: inside(path, "%ef%bc%8f"),
    "backslash": lambda path: inside(path, "\\"),
    "%5c": lambda path: inside(path, "%5c"),
    "//": lambda path: inside(path, "//"),
    "//, first": lambda path: "/" + path,
    "//, and a host": lambda path: "//localhost" + path,
    "/./": lambda path: path.replace("/", "/./"),
    "/%2e/": lambda path: path.replace("/", "/%2e/"),
    ";/": lambda path: inside(path, ";/"),
    "/;/": lambda path: "/;" + path,
    "..": lambda path: "/v1/.." + path,
    ".. out of the probes": lambda path: "/v2/health/../.." + path,
    ".. above the root": lambda path: "/.." + path,
    "%2e%2e": lambda path: "/v1/%2e%2e" + path,
    ".%2e": lambda path: "/v1/.%2E" + path,
    "..%2f": lambda path: "/v1/..%2f" + path[1:],
    "..%252f": lambda path: "/v1/..%252f" + path[1:],
    "..%5c": lambda path: "/v1/..%5c" + path[1:],
    "..;": lambda path: "/v1/..;" + path,
    "%c0%ae%c0%ae": lambda path: "/v1/%c0%ae%c0%ae" + path,
    "%252e%252e": lambda path: "/v1/%252e%252e" + path,
    "upper case": str.upper,
    "one letter in upper case": lambda path: "/" + path[1:].capitalize(),
    "a slash behind": lambda path: path + "/",
    "two slashes behind": lambda path: path + "//",
    "a dot behind": lambda path: path + ".",
    "a slash and a dot behind": lambda path: path + "/.",
    "a segment and .. behind": lambda path: path + "/a/..",
    "a type behind": lambda path: path + ".json",
    "; behind": lambda path: path + ";a=b",
    "? behind": lambda path: path + "?",
    "%3f behind": lambda path: path + "%3f",
    "# behind": lambda path: path + "#a",
    "%23 behind": lambda path: path + "%23a",
    "%20 behind": lambda path: path + "%20",
    "%09 behind": lambda path: path + "%09",
    "%0a behind": lambda path: path + "%0a",
    "%0d%0a behind": lambda path: path + "%0d%0aX: ",
    "%00 behind": lambda path: path + "%00",
    "%00 and a type behind": lambda path: path + "%00.json",
    "%00 before": lambda path: "/%00" + path,
    "a byte that is not UTF-8 behind": lambda path: path + "\xff",
    "after a query": lambda path: "/v2?/.." + path,
    "after a fragment": lambda path: "/v2/health/live#/../../.." + path,
    "absolute-form": lambda path: "http://localhost" + path,
    "absolute-form to another host": lambda path: "https://other:1" + path,
    "absolute-form, twice": lambda path: "http://localhost/http://localhost" + path,
    "without the first slash": lambda path: path[1:],
}
# What some proxies and frameworks take for the path or the method.
ELSEWHERE = ["X-Original-URL", "X-Rewrite-URL", "X-Original-URI", "X-Accel-Redirect", "PATH_INFO", "SCRIPT_NAME"]
# One that has a body for who asks with GET, and none that a client may have for who asks otherwise.
RESOURCE, ONLY_FOR_GET = "/v2/models/scale", b'"platform"'
METHODS = [
    "PURGE",
    "TRACE",
    "TRACK",
    "PROPFIND",
    "PUT",
    "PATCH",
    "M-SEARCH",
    "LOCK",
    "CONNECT",
    "PRI",
    "GETT",
    "G",
    "_",
]
MALFORMED_METHODS = ["get", "Get", "GET\t", "\tGET", "GET\0", "GE\x0bT", "G\xc3\x89T", "GET,POST", "A" * 9000, ""]


def ask(edge: Edge, method: str, path: str, *fields: str) -> Answer:
    """`path` may be what no client library would send."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Length: 2", *fields, "", "{}"]
    return edge.ask("\r\n".join(lines).encode("latin-1"))


def is_served(edge: Edge) -> bool:
    return edge.get("/v2/models/half/ready").status == 200


def test_operators_have_another_way_in(shared_edge: tuple[Edge, Server]) -> None:
    """Without it, those below would prove nothing."""
    edge, server = shared_edge
    assert is_served(edge)
    assert server.post(UNLOAD, {}).status == 200
    assert not is_served(edge)
    assert server.post(LOAD, {}).status == 200
    assert is_served(edge)


@pytest.mark.parametrize("what", VARIANTS)
def test_no_spelling_reaches_what_is_for_operators(edge: Edge, what: str) -> None:
    for target in (LOAD, UNLOAD):
        assert ask(edge, "POST", VARIANTS[what](target)).status in (400, 404, 405)
        assert is_served(edge)
    check_no_metrics(ask(edge, "GET", VARIANTS[what](METRICS)))


@pytest.mark.parametrize("what", VARIANTS)
def test_no_spelling_over_http2_reaches_what_is_for_operators(edge: Edge, what: str) -> None:
    for target in (LOAD, UNLOAD):
        with edge.http2() as client:
            answer = client.request("POST", VARIANTS[what](target), b"{}")
        assert answer is None or answer.status in (400, 404, 405)
        assert is_served(edge)
    with edge.http2() as client:
        check_no_metrics(client.request("GET", VARIANTS[what](METRICS)))


def check_no_metrics(answer: Answer | None) -> None:
    """An answer of 200 is about something else."""
    assert answer is None or answer.status in (200, 400, 404)
    if answer and answer.status == 200:
        assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("name", ELSEWHERE)
def test_no_header_takes_the_place_of_the_path(edge: Edge, name: str) -> None:
    for target in (LOAD, UNLOAD, METRICS):
        answer = ask(edge, "POST", "/v2/models/half", f"{name}: {target}")
        assert answer.status in (400, 405)
        assert is_served(edge)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_is_not_offered_is_refused(edge: Edge, method: str) -> None:
    answer = ask(edge, method, RESOURCE, "Connection: close")
    assert answer.status in (400, 405)
    assert ONLY_FOR_GET not in answer.body
    with edge.http2() as client:
        over_http2 = client.request(method, RESOURCE)
    assert over_http2 is not None
    assert over_http2.status in (400, 405)


@pytest.mark.parametrize("method", MALFORMED_METHODS, ids=repr)
def test_what_is_no_method_is_refused(edge: Edge, method: str) -> None:
    answer = ask(edge, method, RESOURCE)
    assert answer.status in (400, 414)
    assert ONLY_FOR_GET not in answer.body
    with edge.http2() as client:
        over_http2 = client.request(method, RESOURCE)
    assert over_http2 is None or over_http2.status in (400, 405)


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS"])
def test_a_method_that_is_offered_elsewhere_is_not_taken_for_get(edge: Edge, method: str) -> None:
    answer = ask(edge, method, RESOURCE, "X-HTTP-Method-Override: GET", "X-HTTP-Method: GET", "X-Method-Override: GET")
    assert answer.status == (200 if method == "OPTIONS" else 405)
    assert ONLY_FOR_GET not in answer.body
    assert "GET" in answer.headers["Allow"]
