"""However a path or a method is spelt: what is for operators is reached by nobody else who comes through NGINX."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from edge import Edge, make_certificate
from servers import Answer, Server, bearer, fetch_token, held, wait_until

from access_control.clients import add_client

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


def is_served(edge: Edge, token: str = "") -> bool:
    return edge.get("/v2/models/half/ready", bearer(token) if token else None).status == 200


class Guarded(NamedTuple):
    """NGINX before a server that requires tokens; and those of who may change what is served and of who may not."""

    edge: Edge
    server: Server
    operator: str
    other: str


@pytest.fixture(scope="session")
def shared_guarded(models: Path, worker_class: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    tls, clients = make_certificate(folder), folder / "secrets/clients.json"
    secret = add_client(clients, "admin", ("predict", "models:read", "models:admin"))
    demo = (folder / "secrets/demo_client_secret").read_text()
    settings = {"auth": "required", "auth_dir": folder / "secrets", "auth_token_seconds": 86400, "workers": 2}
    with (
        held(folder / "api.sock") as path,
        Server(models, worker_class, listener=path, **settings) as server,
        Edge(path, tls, folder / "run") as edge,
    ):
        wait_until(lambda: len(server.workers()) == 2, "both workers have started")
        tokens = [fetch_token(edge.http(), *client) for client in (("admin", secret), ("demo", demo))]
        yield Guarded(edge, server, *tokens)


@pytest.fixture
def guarded(shared_guarded: Guarded) -> Iterator[Guarded]:
    """Nothing that a client sends ends a worker, or changes what is served."""
    edge, server, _, token = shared_guarded
    before = [set(each.workers()) for each in (edge, server)]
    yield shared_guarded
    assert is_served(edge, token)
    assert [set(each.workers()) for each in (edge, server)] == before, server.log()[-3000:]


def test_operators_come_in_with_a_token(guarded: Guarded) -> None:
    """Without that, those below would prove nothing."""
    edge, server, token, _ = guarded
    assert is_served(edge, token)
    assert server.post(UNLOAD, {}).status == 401, "nobody else does, from inside either"
    assert edge.post(UNLOAD, b"{}", bearer(token)).status == 200
    assert not is_served(edge, token)
    assert edge.post(LOAD, b"{}", bearer(token)).status == 200


@pytest.mark.parametrize("what", VARIANTS)
def test_no_spelling_reaches_what_is_for_operators(guarded: Guarded, what: str) -> None:
    """401 and 403 say that it was understood; and so for no spelling is there an answer of the route itself."""
    for target in (LOAD, UNLOAD):
        path = VARIANTS[what](target)
        assert ask(guarded.edge, "POST", path).status in (400, 401, 404, 405)
        authorization = f"Authorization: Bearer {guarded.other}"
        assert ask(guarded.edge, "POST", path, authorization).status in (400, 403, 404, 405)
        assert is_served(guarded.edge, guarded.other)


@pytest.mark.parametrize("what", VARIANTS)
def test_no_spelling_over_http2_reaches_what_is_for_operators(guarded: Guarded, what: str) -> None:
    for target in (LOAD, UNLOAD):
        for fields in ((), (("authorization", f"Bearer {guarded.other}"),)):
            with guarded.edge.http2() as client:
                answer = client.request("POST", VARIANTS[what](target), b"{}", *fields)
            assert answer is None or answer.status in (400, 403 if fields else 401, 404, 405)
            assert is_served(guarded.edge, guarded.other)


@pytest.mark.parametrize("what", VARIANTS)
def test_no_spelling_reaches_the_metrics(edge: Edge, what: str) -> None:
    check_no_metrics(ask(edge, "GET", VARIANTS[what](METRICS)))
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
