"""NGINX as it ships, for tests: `nginx/start.sh` in a process of its own, on free ports of the loopback address."""

import http.client
import io
import json
import os
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import h2.config
import h2.connection
import h2.events
from servers import Answer, read_all, wait_until

ROOT = Path(__file__).resolve().parents[1]
FIRST_START = ROOT / "docker/first_start.py"
# On every answer, whoever makes it.
SECURITY_HEADERS = {
    "Strict-Transport-Security": "max-age=63072000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def make_certificate(folder: Path) -> Path:
    """The folder with `server.crt`, `server.key` and `ca.crt`, made as a first start makes them."""
    command = [sys.executable, str(FIRST_START), "--tls", str(folder / "tls"), "--ca", str(folder / "ca")]
    subprocess.run([*command, "--secrets", str(folder / "secrets")], check=True, stdout=subprocess.DEVNULL)
    return folder / "tls"


class Edge:
    """`with Edge(api_socket, tls, folder) as edge:` answers inside; settings in lower case: `edge_connections=5`."""

    def __init__(self, api_socket: Path, tls: Path, folder: Path, **settings: Any) -> None:
        self.port, self.clear_port, self.status_port = _free_ports(3)
        self.tls = tls
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "edge.log"
        variables = {
            "edge_run_dir": folder,
            "edge_tls_dir": tls,
            "edge_api_socket": api_socket,
            "edge_https_listen": f"127.0.0.1:{self.port}",
            "edge_http_listen": f"127.0.0.1:{self.clear_port}",
            "edge_status_listen": f"127.0.0.1:{self.status_port}",
            "edge_https_port": self.port,
            "edge_requests_per_second": 100_000,
            "edge_connections": 1000,
        }
        self._environment = {name.upper(): str(value) for name, value in (variables | settings).items()}

    def __enter__(self) -> Self:
        path = f"{os.environ['PATH']}:/usr/sbin"  # as start.sh has it
        assert shutil.which("nginx", path=path), "expected nginx, found none: these tests run the real one, install it"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                ["sh", str(ROOT / "nginx/start.sh")], env=os.environ | self._environment, stdout=log, stderr=log
            )
        wait_until(self._answers, f"the edge answers; its log: {self._log}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def reload(self) -> None:
        command = ["sh", str(ROOT / "nginx/start.sh"), "reload"]
        subprocess.run(command, env=os.environ | self._environment, check=True, capture_output=True)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def access_log(self, about: str = "") -> list[dict[str, Any]]:
        """The lines so far that have the text `about` in them; NGINX writes them once a second."""
        lines = self._log.read_bytes().splitlines()
        return [json.loads(line) for line in lines if line.startswith(b"{") and about.encode() in line]

    def logged(self, request_id: str) -> dict[str, Any]:
        """The line about the request with this id."""
        wait_until(lambda: self.access_log(request_id), f"request {request_id} is in the access log")
        [line] = self.access_log(request_id)
        assert line["request_id"] == request_id
        return line

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def worker_of(self, client: socket.socket) -> int:
        """The process id of the worker that has the other end of this connection."""
        here, there = (f"0100007F:{port:04X}" for port in (self.port, client.getsockname()[1]))
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        [inode] = {line[9] for line in lines if line[1:3] == [here, there]} - {"0"}  # those have ended
        [worker] = [pid for pid in self.workers() if f"socket:[{inode}]" in _open_files(pid)]
        return worker

    def on_each_worker(self) -> dict[int, http.client.HTTPSConnection]:
        """A connection to each worker. Who accepts one is up to the kernel: open some until there is one for each."""
        found: dict[int, http.client.HTTPSConnection] = {}

        def have_all() -> bool:
            connection = self.http()
            connection.request("GET", "/v2/health/live")  # a worker that answers has accepted
            connection.getresponse().read()
            if found.setdefault(self.worker_of(connection.sock), connection) is not connection:
                connection.close()
            return set(found) == set(self.workers())

        wait_until(have_all, "each worker of NGINX has accepted a connection")
        return found

    def context(self) -> ssl.SSLContext:
        """A client's: it trusts the development CA and nobody else, and checks the name."""
        return ssl.create_default_context(cafile=str(self.tls / "ca.crt"))

    def http(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", self.port, timeout=30, context=self.context())

    def http2(self) -> "Http2":
        return Http2(self.connect(alpn=["h2"]))

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = self.http()
        try:
            connection.request(method, path, body, headers or {})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return self.request("GET", path, None, headers)

    def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> Answer:
        return self.request("POST", path, body, headers)

    def raw(self, data: bytes, timeout: float = 5) -> bytes:
        """Whatever comes back, in HTTP/1.1 over TLS, until it closes or `timeout` seconds pass in silence."""
        with self.connect(timeout) as client:
            client.sendall(data)
            return read_all(client)

    def ask(self, data: bytes) -> Answer:
        """The one answer to raw bytes."""
        with self.connect(20) as client:
            client.sendall(data)
            response = http.client.HTTPResponse(client)
            response.begin()
            return Answer(response)

    def connect(self, timeout: float = 10, alpn: list[str] | None = None) -> ssl.SSLSocket:
        context = self.context()
        context.set_alpn_protocols(alpn or ["http/1.1"])
        return context.wrap_socket(self.plain(timeout), server_hostname="localhost")

    def plain(self, timeout: float = 10) -> socket.socket:
        """A connection to the port of TLS on which nothing has been said yet."""
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the edge ended with {self.process.returncode}:\n{self.log()}")
        if len(self.workers()) < (os.cpu_count() or 1):  # as many as it is going to have, or a test would see one come
            return False
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False


def _free_ports(count: int) -> list[int]:
    """Different ones: none is given back before all are taken."""
    with ExitStack() as taken:
        servers = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def _open_files(pid: int) -> set[str]:
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(str(link.readlink()))
    return found


class Canary:
    """Clients with connections of their own, one to each worker of NGINX, who can tell their answers from others'.

    `with canary.singing():` has them ask all the time, and fails if one is not answered as it should be.
    """

    def __init__(self, edge: Edge) -> None:
        self._sings, self._ends = threading.Event(), threading.Event()
        self._wrong: list[str] = []
        connections = edge.on_each_worker().values()
        self._answered = [0] * len(connections)
        self._threads = [threading.Thread(target=self._sing, args=singer) for singer in enumerate(connections)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.set()
        self._sings.set()
        for thread in self._threads:
            thread.join()

    @contextmanager
    def singing(self) -> Iterator[None]:
        self._sings.set()
        try:
            yield
            wanted = [count + 3 for count in self._answered]
            wait_until(
                lambda: self._wrong or all(map(int.__ge__, self._answered, wanted)), "the canaries have their answers"
            )
        finally:
            self._sings.clear()
            wrong, self._wrong = self._wrong, []
        assert not wrong, "; ".join(wrong)

    def _sing(self, singer: int, connection: http.client.HTTPSConnection) -> None:
        while not self._ends.is_set():
            own = [singer + 1, self._answered[singer], 7]
            try:
                connection.request("POST", "/v1/models/scale:predict", json.dumps({"instances": [own]}))
                answer = Answer(connection.getresponse())
                if answer.status != 200 or answer.json()["predictions"] != [[2 * value for value in own]]:
                    self._wrong.append(f"{own} was answered with {answer}")
            except (OSError, http.client.HTTPException) as error:
                self._wrong.append(f"{own} was answered with {error!r}")
                connection.close()
            self._answered[singer] += 1
            self._sings.wait(5)  # longer, and NGINX would take the connection for abandoned
        connection.close()


class Http2:
    """A connection that speaks HTTP/2 and sends what it is told to, well-formed or not."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        assert sock.selected_alpn_protocol() == "h2"
        self._socket = sock
        config = h2.config.H2Configuration(
            header_encoding="latin-1", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self._protocol = h2.connection.H2Connection(config)
        self._protocol.initiate_connection()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def request(self, method: str, path: str, body: bytes = b"", *fields: tuple[str, str]) -> Answer | None:
        """None if the stream or the connection is reset instead of an answer."""
        stream = self._protocol.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)]
        self._protocol.send_headers(stream, [*pseudo, *fields], end_stream=not body)
        left = memoryview(body)
        head, data = "", b""
        while True:
            left = self._send(stream, left)
            for event in self._receive():
                match event:
                    case h2.events.ResponseReceived():
                        head = _as_http1(event.headers)
                        left = left[:0]
                    case h2.events.DataReceived():
                        data += event.data
                        self._protocol.acknowledge_received_data(event.flow_controlled_length, stream)
                    case h2.events.StreamEnded():
                        [answer] = answers(head.encode("latin-1") + data)
                        return answer
                    case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                        return None

    def _send(self, stream: int, left: memoryview) -> memoryview:
        while left and (room := self._protocol.local_flow_control_window(stream)):
            size = min(room, self._protocol.max_outbound_frame_size, len(left))
            self._protocol.send_data(stream, left[:size].tobytes(), end_stream=size == len(left))
            left = left[size:]
        self._socket.sendall(self._protocol.data_to_send())
        return left

    def _receive(self) -> list[h2.events.Event]:
        data = self._socket.recv(1 << 16)
        return self._protocol.receive_data(data) if data else [h2.events.ConnectionTerminated()]


def _as_http1(fields: list[tuple[str, str]]) -> str:
    lines = [f"HTTP/1.1 {value} -" if name == ":status" else f"{name}: {value}" for name, value in fields]
    return "\r\n".join([*lines, "", ""])


Behaviour = Literal["echo", "hang up", "hang up if kept", "refuse", "wait"]


class StandIn(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """In the API's place at `path`: it remembers what reaches it, and then does what `does` says.

    echo: answer with what came. hang up: close without an answer. hang up if kept: answer the first request of each
    connection, as if whoever has it died then. refuse: answer 503. wait: not answer.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: Path, does: Behaviour = "echo") -> None:
        super().__init__(str(path), _StandInHandler)
        self.does = does
        self.received: list[dict[str, Any]] = []
        self.ended = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()


class _StandInHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn
    is_kept = False

    def answer(self) -> None:
        length = int(self.headers["Content-Length"] or 0)
        request = {"method": self.command, "target": self.path, "headers": self.headers.items()}
        request["body"] = self.rfile.read(length).decode("latin-1")
        self.server.received.append(request)
        match self.server.does, self.is_kept:
            case ("echo", _) | ("hang up if kept", False):
                self.write(200, request)
            case "refuse", _:
                self.write(503, {"error": "full"})
            case "wait", _:
                self.server.ended.wait()
                self.close_connection = True
            case _:
                self.close_connection = True
        self.is_kept = True

    do_GET = do_HEAD = do_POST = do_DELETE = do_OPTIONS = answer  # noqa: N815  # named by the standard library

    def write(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *about: Any) -> None:
        """It is asked what it received, and need not say so."""


def answers(data: bytes) -> list[Answer]:
    """The answers in what a connection brought, one after another."""
    stream = _Stream(data)
    found = []
    while stream.tell() < len(data):
        response = http.client.HTTPResponse(stream)
        response.begin()
        found.append(Answer(response))
    return found


class _Stream(io.BytesIO):
    """Bytes in a socket's place, which the end of one answer does not close."""

    def makefile(self, *mode: Any) -> Self:
        return self

    def close(self) -> None:
        """There is nothing to be freed."""
