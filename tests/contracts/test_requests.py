"""What arrives: bodies of every framing within their bound, and everything that is wrong with a request."""

import json
from pathlib import Path

import pytest
from load import Load
from servers import Server, kept_connection, read_all, read_answer, wait_until

BODY_LIMIT = 1 << 20  # what the server under test was told
CHUNKED = b"POST /v1/models/scale:predict HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
INSTANCES = b'{"instances": [[1, 2, 3]]}'


def padded(size: int) -> bytes:
    return INSTANCES.ljust(size)


def test_a_body_of_the_very_limit_is_taken_and_one_byte_more_is_not(server: Server) -> None:
    assert server.post("/v1/models/scale:predict", padded(BODY_LIMIT)).status == 200
    refused = server.post("/v1/models/scale:predict", padded(BODY_LIMIT + 1))
    assert refused.status == 413
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert f"at most {BODY_LIMIT} bytes, got {BODY_LIMIT + 1}" in refused.json()["detail"]
    assert "at most" in server.post("/v2/models/scale/infer", padded(BODY_LIMIT + 1)).json()["error"]


def test_a_body_far_over_the_limit_is_refused(server: Server) -> None:
    answer = server.raw(b"POST /v2/models/scale/infer HTTP/1.1\r\nHost: test\r\nContent-Length: 99999999999\r\n\r\n")
    assert answer.split(b" ")[1] == b"413"


def test_a_chunked_body_is_taken(server: Server) -> None:
    chunks = [b"%x;extension=1\r\n%b\r\n" % (len(part), part) for part in (INSTANCES[:5], INSTANCES[5:])]
    with kept_connection(server, CHUNKED, *chunks, b"0\r\n\r\n") as (client, answer):
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["predictions"] == [[2, 4, 6]]
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
        assert read_answer(client).endswith(b'{"live":true}')


def test_an_endless_chunked_body_is_refused(server: Server) -> None:
    with server.connect() as client:
        client.sendall(CHUNKED)
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        try:
            for _ in range(4 * BODY_LIMIT // len(chunk)):
                client.sendall(chunk)
        except (BrokenPipeError, ConnectionResetError):
            return  # it stopped listening before we stopped talking, which is a refusal too
        assert read_all(client).split(b" ")[1] == b"413"


def test_a_client_that_expects_100_continue_may_send_its_body(server: Server, worker_class: str) -> None:
    if (
        worker_class == "meinheld"
    ):  # it reads the body first, so the client waits out its patience; NGINX answers for it
        return
    head = b"POST /v1/models/scale:predict HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with server.connect() as client:
        client.sendall(head % len(INSTANCES))
        assert client.recv(1000).startswith(b"HTTP/1.1 100")
        client.sendall(INSTANCES)
        assert read_answer(client).startswith(b"HTTP/1.1 200")


def test_a_client_that_goes_away_in_the_middle_of_its_request_harms_nobody(server: Server) -> None:
    for _ in range(20):
        with server.connect() as client:
            client.sendall(b"POST /v1/models/scale:predict HTTP/1.1\r\nHost: test\r\nContent-Length: 500\r\n\r\n{")
    for _ in range(10):
        assert server.post("/v1/models/scale:predict", INSTANCES).status == 200


# The head after its first two lines, and the classes that answer it all the same: meinheld's parser dates from 2012.
# NGINX refuses each of these before meinheld sees it (ARCHITECTURE.md has the table).
MALFORMED: dict[str, tuple[bytes, set[str]]] = {
    "Content-Length and Transfer-Encoding": (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", set()),
    "two different Content-Lengths": (b"Content-Length: 5\r\nContent-Length: 6\r\n", set()),
    "Content-Length with a sign": (b"Content-Length: +3\r\n", set()),
    "Content-Length of two numbers": (b"Content-Length: 1 2\r\n", {"meinheld"}),
    "negative Content-Length": (b"Content-Length: -1\r\n", set()),
    "a space before the colon": (b"Content-Length : 5\r\n", set()),
    "a folded header": (b"X-A: 1\r\n folded: 2\r\n", {"meinheld"}),
    "a header without a colon": (b"nonsense\r\n", {"meinheld"}),
    "NUL in a header": (b"X-A: a\0b\r\n", {"meinheld"}),
    "bare carriage return in a header": (b"X-A: a\rb\r\n", {"meinheld"}),
    "two Hosts": (b"Host: other\r\n", {"meinheld"}),
    "Transfer-Encoding that is not offered": (b"Transfer-Encoding: xchunked\r\n", {"meinheld"}),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_request_is_refused(server: Server, worker_class: str, what: str) -> None:
    head, takers = MALFORMED[what]
    answer = server.raw(
        b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\nConnection: close\r\n" + head + b"\r\n", timeout=2
    )
    status = answer.split(b" ")[1].decode() if answer else "-"
    if worker_class in takers:
        assert answer.count(b"HTTP/1.") <= 1
    else:
        assert status in ("400", "501", "-")
    assert server.get("/v2/health/live").status == 200


@pytest.mark.parametrize(
    "first_line",
    [
        b"GET /v2/health/live HTTP/9.9",
        b"G\x01T /v2/health/live HTTP/1.1",
        b"GET /v2/\x00health/live HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"",
    ],
)
def test_a_malformed_first_line_gets_no_success(server: Server, worker_class: str, first_line: bytes) -> None:
    answer = server.raw(first_line + b"\r\nHost: test\r\nConnection: close\r\n\r\n", timeout=2)
    if (worker_class, first_line) != ("meinheld", b"GET /v2/health/live HTTP/9.9"):
        assert not answer.startswith(b"HTTP/1.1 200")
    assert server.get("/v2/health/live").status == 200


@pytest.mark.parametrize(
    "line", [b"Upgrade: foo\r\nConnection: upgrade\r\n", b"Upgrade: h2c\r\nHTTP2-Settings: AA\r\n"]
)
def test_an_offer_to_change_protocols_is_declined(models: Path, worker_class: str, line: bytes) -> None:
    with Server(models, worker_class, workers=1) as server:
        answer = server.raw(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n" + line + b"\r\n", timeout=1)
        if worker_class == "meinheld":  # it answers whoever comes next with 500; NGINX forwards no Upgrade
            server.get("/v2/health/live")
        else:
            assert answer.startswith(b"HTTP/1.1 200")
        assert server.get("/v2/health/live").status == 200


def test_a_method_that_is_not_known_is_not_taken_for_another(server: Server, worker_class: str) -> None:
    """The fault of meinheld that a client can reach through NGINX, and why it is not the default."""
    status = server.request("PURGE", "/v2/health/live").status
    if worker_class == "meinheld":
        assert status == 200
    else:
        assert status in (400, 405, 501)


def test_a_hidden_second_request_is_not_answered(server: Server) -> None:
    """A body that looks like a request is a body."""
    hidden = b"GET /v2 HTTP/1.1\r\nHost: test\r\n\r\n"
    with server.connect(timeout=1) as client:
        client.sendall(
            b"POST /v1/models/scale:predict HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%b"
            % (len(hidden), hidden)
        )
        answer = read_all(client)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_url_that_is_too_long_is_refused(server: Server) -> None:
    assert server.get("/v2?" + "a" * 7000).status == 200
    answer = server.raw(b"GET /v2?" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: test\r\n\r\n", timeout=2)
    assert not answer.startswith(b"HTTP/1.1 200")


def test_too_many_headers_are_refused(server: Server, worker_class: str) -> None:
    few, many = ({f"X-{i}": "a" for i in range(count)} for count in (80, 200))
    assert server.request("GET", "/v2", headers=few).status == 200
    if worker_class != "meinheld":
        assert server.request("GET", "/v2", headers=many).status in (400, 431)


def test_idle_connections_leave_room_for_others_to_be_served(server: Server, worker_class: str) -> None:
    # In gthread a silent connection holds a thread for five seconds: NGINX opens none before it has the request.
    idle = [server.connect() for _ in range(3 if worker_class == "gthread" else 300)]
    try:
        for _ in range(10):
            assert server.post("/v1/models/scale:predict", INSTANCES).status == 200
    finally:
        for client in idle:
            client.close()
    wait_until(lambda: server.get("/v2/health/live").status == 200, "the server answers after the flood")


def test_new_connections_are_served_beside_busy_ones(server: Server) -> None:
    with Load(server, "/v1/models/scale:predict", {"instances": [[1, 2, 3]]}, rate=100_000, clients=16) as load:
        wait_until(lambda: load.sent > 100, "every worker is busy")
        statuses = [server.get("/v2/health/live").status for _ in range(50)]
    assert statuses == [200] * 50
    assert load.failed == {}


def test_a_request_that_takes_too_long_to_arrive_is_given_up(server: Server, worker_class: str) -> None:
    """Slow clients are NGINX's to bear, but llhttp is made to stand alone as well."""
    if worker_class != "llhttp":
        return
    with server.connect(timeout=20) as head, server.connect(timeout=20) as silent:
        head.sendall(b"GET /v2/health/live HTTP/1.1\r\nX-A:")
        assert read_all(head).startswith(b"HTTP/1.1 408")
        assert silent.recv(1) == b"", "a connection without a request is closed without an answer"
