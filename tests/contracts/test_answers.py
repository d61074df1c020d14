"""What the application answers arrives whole, whatever its size, and leaves the connection fit for the next request."""

import hashlib
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from servers import Server, is_kept, kept_connection, read_answer

SIZES = [0, 1, 1000, (64 << 10) - 1, 64 << 10, 200_000, 219_136, 1 << 20, 4 << 20, 16 << 20]
RAW = [{"name": "bytes", "parameters": {"binary_data": True}}]


def count_request(size: int, *fields: str) -> bytes:
    tensor = {"name": "n", "datatype": "INT64", "shape": [1], "data": [size]}
    body = json.dumps({"inputs": [tensor], "outputs": RAW}).encode()
    head = ["POST /v2/models/count/infer HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def checksum_of_count(size: int) -> str:
    return hashlib.sha256((np.arange(size) % 251).astype(np.uint8).tobytes()).hexdigest()


def raw_part(answer: bytes) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    return body[int(fields[b"inference-header-content-length"]) :]


def test_every_size_arrives_whole_and_the_next_request_is_answered(server: Server) -> None:
    for size in SIZES:
        with server.connect() as client:
            client.sendall(count_request(size))
            answer = read_answer(client)
            assert hashlib.sha256(raw_part(answer)).hexdigest() == checksum_of_count(size), size
            if is_kept(answer):
                client.sendall(count_request(3))
                assert raw_part(read_answer(client)) == b"\0\1\2"
            else:
                assert client.recv(1) == b""


def test_every_size_arrives_whole_over_a_unix_socket(models: Path, worker_class: str, tmp_path: Path) -> None:
    with Server(models, worker_class, unix_socket=tmp_path / "app.sock", workers=1) as server:
        for size in SIZES:
            with server.connect() as client:
                client.sendall(count_request(size))
                assert hashlib.sha256(raw_part(read_answer(client))).hexdigest() == checksum_of_count(size), size


def test_a_client_with_a_tiny_window_gets_a_large_answer_whole(server: Server) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(("127.0.0.1", server.port))
        client.sendall(count_request(4 << 20))
        assert hashlib.sha256(raw_part(read_answer(client))).hexdigest() == checksum_of_count(4 << 20)


def test_a_client_that_does_not_read_keeps_nobody_else_waiting(server: Server) -> None:
    with server.connect() as idle, server.connect() as idle_too:
        for client in (idle, idle_too):
            client.sendall(count_request(16 << 20))
        for _ in range(10):
            assert server.get("/v2/health/live").status == 200


def test_head_has_the_headers_of_get_and_no_body(server: Server) -> None:
    with kept_connection(server, b"GET /v2 HTTP/1.1\r\nHost: test\r\n\r\n") as (client, answer):
        length = len(answer.partition(b"\r\n\r\n")[2])
        client.sendall(b"HEAD /v2 HTTP/1.1\r\nHost: test\r\n\r\nGET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
        answers = b""
        while not answers.endswith(b'{"live":true}'):
            answers += client.recv(1 << 16)
    head, _, rest = answers.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert f"content-length: {length}".encode() in head.lower()
    assert rest.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("version", "kept"), [("1.1", True), ("1.0", False)])
def test_a_connection_is_kept_as_its_http_version_has_it(server: Server, version: str, kept: bool) -> None:
    request = f"GET /v2/health/live HTTP/{version}\r\nHost: test\r\n\r\n".encode()
    if kept:
        with kept_connection(server, request) as (client, _):
            client.sendall(request)
            assert read_answer(client).endswith(b'{"live":true}')
        return
    with server.connect() as client:
        client.sendall(request)
        assert read_answer(client).endswith(b'{"live":true}')
        assert client.recv(1) == b""


def test_a_connection_ends_when_the_client_says_so(server: Server) -> None:
    answer = server.raw(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b'{"live":true}')


@pytest.mark.parametrize("count", [2, 50])
def test_pipelined_requests_are_answered_in_order(server: Server, worker_class: str, count: int) -> None:
    if worker_class == "meinheld":  # it answers the first and closes; NGINX never pipelines
        answers = server.raw(count_request(1) * count, timeout=2)
        assert answers.startswith(b"HTTP/1.1 200")
        assert answers.count(b" 200 OK") == 1
        return
    with server.connect() as client:
        client.sendall(b"".join(count_request(i) for i in range(count)))
        stream = client.makefile("rb")
        for i in range(count):
            length = 0
            while (line := stream.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length"):
                    length = int(line.split(b":")[1])
            assert stream.read(length).endswith((np.arange(i) % 251).astype(np.uint8).tobytes())


def test_a_request_that_comes_byte_by_byte_is_answered(server: Server) -> None:
    with server.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in count_request(3):
            client.send(bytes([byte]))
        assert raw_part(read_answer(client)) == b"\0\1\2"
