"""Requests about whose end two parsers might disagree: nobody ever reads an answer that is not its own.

Each goes through NGINX over TLS, while canaries ask beside it and NGINX uses its connections to the workers again.
"""

import re
from typing import Any

import pytest
from edge import Canary, Edge

OWN = b'{"instances": [[1, 2, 3]]}'
HIDDEN = b"GET /v2/models/mixed HTTP/1.1\r\nHost: hidden\r\n\r\n"
LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
LENGTH, OTHER_LENGTH = (f"Content-Length: {len(body)}" for body in (OWN, b"0\r\n\r\n" + HIDDEN))
CODING = "Transfer-Encoding: chunked"
# A body that ends at once for who reads chunks, and holds another request for who reads a length.
TWO_WAYS = b"0\r\n\r\n" + HIDDEN
PIECES = b"1a\r\n" + OWN + b"\r\n0\r\n\r\n"


def post(*fields: str, body: bytes = OWN, path: str = "/v1/models/scale:predict", version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: localhost", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def get(*fields: str, line: str = "GET /v2/health/live HTTP/1.1", host: str = "Host: localhost\r\n") -> bytes:
    return "\r\n".join([line, host + "\r\n".join([*fields, "", ""])]).encode("latin-1")


def pieces(body: bytes) -> bytes:
    return post(CODING, body=body)


def ignored(path: str = "/v1/models/scale:predict", *fields: str, line: str = "") -> bytes:
    """A request with a body that is a request, to somebody who may not care to read it."""
    request = post(f"Content-Length: {len(HIDDEN)}", *fields, body=HIDDEN, path=path)
    return request.replace(f"POST {path}".encode(), line.encode()) if line else request


# fmt: off
ALMOST_CHUNKED = [
    "\x0bchunked", "chunked\x0b", "\tchunked", "chunked\t", "\x0cchunked", "\xa0chunked", '"chunked"', "xchunked", "",
    "identity", "identity, chunked", "chunked, identity", "chunked, chunked", "gzip, chunked", ", chunked",
    "chunked;q=1",
]
ALMOST_A_NUMBER = [
    "3,3", "26, 26", "+26", "-1", "2 6", "0x1a", "26.0", "26e0", "", "\t26", "\x0b26", "26;a", "2\r\n 6",
    "99999999999999999999", "18446744073709551642", "\xd9\xa2\xd9\xa6",
]
# fmt: on
# What is sent before LAST, and the statuses that may come back: refused with the connection, or answered like LAST.
# The same for all worker classes.
TAKEN, NO, UNKNOWN = {"200 200"}, {"400"}, {"501"}
DOUBTFUL: dict[str, tuple[bytes, set[str]]] = {
    "length, coding": (post(OTHER_LENGTH, CODING, body=TWO_WAYS), NO),
    "coding, length": (post(CODING, OTHER_LENGTH, body=TWO_WAYS), NO),
    "length, coding behind a bare line feed": (post(OTHER_LENGTH, f"X-A: a\n{CODING}", body=TWO_WAYS), NO),
    "length, coding behind a bare carriage return": (post(OTHER_LENGTH, f"X-A: a\r{CODING}", body=TWO_WAYS), NO),
    "length, coding behind what Latin-1 ends a line with": (post(LENGTH, f"X-A: a\x85{CODING}"), TAKEN),
    "length, coding behind what truncates to a line break": (post(LENGTH, f"X-A: \xc4\x8d\xc4\x8a{CODING}"), TAKEN),
    "length, coding with an underscore": (post(LENGTH, "Transfer_Encoding: chunked"), TAKEN),
    "length, coding with a space before the colon": (post(LENGTH, "Transfer-Encoding : chunked"), NO),
    "length, coding with a tab before the colon": (post(LENGTH, "Transfer-Encoding\t: chunked"), NO),
    "length, coding with a vertical tab before the colon": (post(LENGTH, "Transfer-Encoding\x0b: chunked"), NO),
    "length, coding with NUL before the colon": (post(LENGTH, "Transfer-Encoding\0: chunked"), NO),
    "length, coding behind a space": (post(LENGTH, f" {CODING}"), NO),
    "length, coding on a folded line": (post(LENGTH, f"X-A: a\r\n {CODING}"), NO),
    "length, identity": (post(OTHER_LENGTH, "Transfer-Encoding: identity", body=TWO_WAYS), UNKNOWN),
    "length, empty coding": (post(OTHER_LENGTH, "Transfer-Encoding:", body=TWO_WAYS), UNKNOWN),
    "length, coding that begins with a vertical tab": (
        post(OTHER_LENGTH, "Transfer-Encoding: \x0bchunked", body=TWO_WAYS),
        UNKNOWN,
    ),
    "both hidden by Connection": (post(LENGTH, "Connection: Content-Length, Transfer-Encoding"), TAKEN),
    **{f"coding {coding!r}": (post(f"Transfer-Encoding: {coding}", body=PIECES), UNKNOWN) for coding in ALMOST_CHUNKED},
    "coding 'CHUNKED'": (post("transfer-encoding: CHUNKED", body=PIECES), TAKEN),
    "coding 'chunked\\r'": (post(f"{CODING}\r", body=PIECES), TAKEN),
    "coding 'chunked\\0'": (post(f"{CODING}\0", body=PIECES), NO),
    "coding '\\0chunked'": (post("Transfer-Encoding: \0chunked", body=PIECES), NO),
    "coding twice": (post(CODING, CODING, body=PIECES), NO),
    "coding, identity on another line": (post(CODING, "Transfer-Encoding: identity", body=PIECES), NO),
    "coding on the next line": (post("Transfer-Encoding:\r\n chunked", body=PIECES), NO),
    "coding in HTTP/1.0": (post(CODING, "Connection: keep-alive", body=PIECES, version="1.0"), NO),
    **{f"length {length!r}": (post(f"Content-Length: {length}"), NO) for length in ALMOST_A_NUMBER},
    "length '026'": (post("Content-Length: 026"), TAKEN),
    "length with an underscore": (post(LENGTH, "Content_Length: 0"), TAKEN),
    "length twice": (post(LENGTH, LENGTH), NO),
    "length, another length": (post(LENGTH, "Content-Length: 0"), NO),
    "length that ends before another request": (post(LENGTH, body=OWN + HIDDEN), {"200 200 200"}),
    # Chunks.
    "chunk size that overflows": (pieces(b"ffffffffffffffff1\r\n" + OWN + b"\r\n0\r\n\r\n"), NO),
    "chunk size that overflows to what it is": (pieces(b"1000000000000001a\r\n" + OWN + b"\r\n0\r\n\r\n"), NO),
    **{
        f"chunk size {size!r}": (pieces(size.encode() + b"\r\n" + OWN + b"\r\n0\r\n\r\n"), NO)
        for size in ("-1a", "+1a", "0x1a", "1_a", " 1a", "", "g", "1a;a\rb")
    },
    "chunk sizes with zeros before them": (pieces(b"0000001A\r\n" + OWN + b"\r\n0000\r\n\r\n"), TAKEN),
    "chunk extension": (pieces(b'1a;a="\\"b"\r\n' + OWN + b"\r\n0;c\r\n\r\n"), TAKEN),
    "chunk extension that a bare line feed ends": (pieces(b"1a;a\n" + OWN + b"\r\n0\r\n\r\n"), TAKEN | NO),
    "chunks with bare line feeds": (pieces(b"1a\n" + OWN + b"\n0\n\n"), TAKEN | NO),
    "chunks with bare carriage returns": (pieces(b"1a\r" + OWN + b"\r0\r\r"), NO),
    "chunk without an end of line": (pieces(b"1a\r\n" + OWN + b"0\r\n\r\n"), NO),
    "chunk that is longer than it says": (pieces(b"5\r\n" + OWN + b"\r\n0\r\n\r\n"), NO),
    "trailer fields": (pieces(PIECES[:-2] + b"Content-Length: 50\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"), TAKEN),
    "trailer that looks like a request": (pieces(PIECES[:-2] + b"X: " + HIDDEN), TAKEN),
    # Lines and names.
    "bare line feeds": (post(LENGTH, body=b"").replace(b"\r\n", b"\n") + OWN, TAKEN | NO),
    "bare carriage returns": (get().replace(b"\r\n", b"\r"), NO),
    "NUL in a value": (get("X-A: a\0b"), NO),
    "NUL before the end of a line": (get("X-A: a\0\r\nX-B: b"), NO),
    "NUL in a name": (get("X\0A: b"), NO),
    "control character in a value": (get("X-A: a\x01b"), {"200 200", "400 200"}),
    "vertical tab in a value": (get("X-A: a\x0bb"), {"200 200", "400 200"}),
    "line without a colon": (get("nonsense"), TAKEN | NO),
    "field without a name": (get(": a"), NO),
    "folded first line": (post(LENGTH).replace(b"Host", b" Content-Length: 0\r\nHost", 1), NO),
    # The first line, and whom it is for.
    "absolute-form": (get(line="GET http://other/v2/health/live HTTP/1.1"), TAKEN),
    "absolute-form without a path": (get(line="GET http://localhost?/v2/health/live HTTP/1.1"), {"404 200"}),
    "asterisk-form": (get(line="OPTIONS * HTTP/1.1"), NO),
    "fragment": (get(line="GET /v2/health/live#a HTTP/1.1"), {"200 200", "404 200", "400 200"}),
    "HTTP/0.9": (b"GET /v2/health/live\r\n", {""}),
    "HTTP/9.9": (get(line="GET /v2/health/live HTTP/9.9"), {"505"}),
    "HTTP/1.2": (get(line="GET /v2/health/live HTTP/1.2"), TAKEN),
    "HTTP/01.1": (get(line="GET /v2/health/live HTTP/01.1"), NO),
    "HTTP/1.1 twice": (get(line="GET /v2/health/live HTTP/1.1 HTTP/1.1"), NO),
    "HTTP/1.0 without Host": (get(line="GET /v2/health/live HTTP/1.0", host=""), {"200", "400"}),
    "two Hosts": (get("Host: other"), NO),
    "no Host": (get(host=""), NO),
    "Host on a folded line": (get(host="Host: a\r\n b\r\n"), NO),
    "line break in the path": (get(line="GET /v2/health/live%0d%0aX:%20y HTTP/1.1"), {"404 200", "400 200"}),
    "tabs in the first line": (get(line="GET\t/v2/health/live\tHTTP/1.1"), NO),
    "empty lines before the first": (b"\r\n\r\n" + get(), TAKEN),
    # Other protocols and promises.
    "CONNECT": (get(line="CONNECT other:443 HTTP/1.1", host="Host: other:443\r\n"), {"400", "405"}),
    "CONNECT with a path": (get(line="CONNECT /v2/health/live HTTP/1.1"), {"405"}),
    "h2c": (
        get("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
        TAKEN,
    ),
    "WebSocket": (get("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"), TAKEN),
    "Upgrade with a body": (post("Connection: Upgrade", "Upgrade: foo", LENGTH), TAKEN),
    "Expect": (post("Expect: 100-continue", LENGTH), {"100 200 200"}),
    "Expect with chunks": (post("Expect: 100-continue", CODING, body=PIECES), {"100 200 200"}),
    "Expect nonsense": (post("Expect: nonsense", LENGTH), TAKEN | {"417 200"}),
    "Expect twice": (post("Expect: 100-continue", "Expect: 100-continue", LENGTH), NO | {"100 200 200"}),
    # Bodies that nobody reads.
    "body of GET": (ignored(line="GET /v2/health/live"), TAKEN),
    "body of HEAD": (ignored(line="HEAD /v2/health/live"), TAKEN),
    "body of DELETE": (ignored(line="DELETE /v2/health/live"), {"405 200"}),
    "body of OPTIONS": (ignored(line="OPTIONS /v2/health/live"), TAKEN),
    "body for nobody": (ignored("/v1/nowhere"), {"404 200"}),
    "body in pieces for nobody": (
        post(CODING, body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN), path="/v1/nowhere"),
        {"404 200"},
    ),
    "body of a method that is not offered there": (ignored("/v2"), {"405 200"}),
    "body of a kind that is not taken": (ignored("/v1/models/scale:predict", "Content-Type: text/plain"), {"415 200"}),
    "body under a deadline that is none": (ignored("/v1/models/scale:predict", "X-Request-Timeout-Ms: x"), {"400 200"}),
    "body that is shorter than its header": (
        ignored("/v2/models/scale/infer", "Inference-Header-Content-Length: 99999"),
        {"400 200"},
    ),
    "body that is not compressed as it says": (
        ignored("/v1/models/scale:predict", "Content-Encoding: gzip"),
        {"400 200"},
    ),
}


@pytest.mark.parametrize("what", DOUBTFUL)
def test_a_doubtful_request_gets_at_most_its_own_answers(edge: Edge, canary: Canary, what: str) -> None:
    request, allowed = DOUBTFUL[what]
    with canary.singing():
        for _ in range(2):
            statuses = re.findall(rb"HTTP/1\.1 (\d{3}) ", edge.raw(request + LAST, timeout=20))
            assert b" ".join(statuses).decode() in allowed


def test_what_reaches_the_api_has_one_end(mirror: Edge, received: list[dict[str, Any]]) -> None:
    data = b"".join([mirror.raw(request + LAST, timeout=20) for request, _ in DOUBTFUL.values()])
    answered = data.count(b"HTTP/1.1 200 ") + 1  # HTTP/0.9 has no such line
    assert len(received) == answered
    hop_by_hop = {"connection", "transfer-encoding", "te", "upgrade", "keep-alive", "expect", "trailer"}
    for request in received:
        names = [name.lower() for name, _ in request["headers"]]
        assert not hop_by_hop & set(names)
        assert names.count("host") <= 1
        assert names.count("content-length") <= 1
        assert request["method"] in ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
        assert request["target"].startswith("/")
        assert request["body"].encode("latin-1") in (b"", OWN, HIDDEN)
    targets = [request["target"] for request in received]
    assert targets.count("/v2/models/mixed") == 1, "the one that came after another, and was not hidden"
