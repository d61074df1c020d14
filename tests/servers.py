"""Real servers for tests: Gunicorn in a process of its own, on a free port of the loopback address or a unix socket."""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

WORKER_CLASSES = ["llhttp", "gthread"] if sys.version_info >= (3, 13) else ["meinheld", "llhttp", "gthread"]
LISTENER = Path(__file__).resolve().parents[1] / "services/inference_api/listener.py"


class Server:
    """`with Server(models) as server:` is ready inside; settings are given in lower case: `workers=1`.

    With `listener`, the path of a socket that somebody holds, it accepts from there as well.
    """

    def __init__(
        self,
        models: Path,
        worker_class: str,
        unix_socket: Path | None = None,
        listener: Path | None = None,
        **settings: Any,
    ) -> None:
        self.port = free_port()
        self._unix_socket = unix_socket
        self._uses = [sys.executable, str(LISTENER), "use", str(listener)] if listener else []
        bind = f"unix:{unix_socket}" if unix_socket else f"127.0.0.1:{self.port}"
        variables = {"worker_class": worker_class, "models_dir": models, "bind": bind, "drain_seconds": 0.5}
        self._environment = {f"TIERCEL_{name.upper()}": str(value) for name, value in (variables | settings).items()}
        self._log = models.parent / f"server-{self.port}.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def start(self) -> None:
        command = [*self._uses, sys.executable, "-m", "gunicorn", "-c", "python:inference_api.gunicorn_conf"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, env=os.environ | self._environment, stdout=log, stderr=log)
        wait_until(self.is_ready, f"the server is ready; its log: {self._log}")

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log()}")
        with suppress(OSError, http.client.HTTPException):
            return self.get("/v2/health/ready").status == 200
        return False

    def log(self) -> str:
        return self._log.read_text()

    def workers(self) -> list[int]:
        """The process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def kill(self, pid: int) -> None:
        assert pid in self.workers()
        os.kill(pid, signal.SIGKILL)

    def get(self, path: str, **headers: str) -> "Answer":
        return self.request("GET", path, None, headers)

    def post(self, path: str, body: Any, **headers: str) -> "Answer":
        """`body` as JSON, unless it is bytes."""
        return self.request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> "Answer":
        connection = self.http()
        try:
            fields = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
            connection.request(method, path, body, fields)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def raw(self, data: bytes, timeout: float = 10) -> bytes:
        """Whatever comes back on a connection of its own until it is closed or `timeout` seconds pass in silence."""
        with self.connect(timeout) as client:
            client.sendall(data)
            return read_all(client)

    def http(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        if self._unix_socket:
            connection.sock = self.connect(20)
        return connection

    def connect(self, timeout: float = 10) -> socket.socket:
        if not self._unix_socket:
            return socket.create_connection(("127.0.0.1", self.port), timeout)
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(timeout)
        try:
            client.connect(str(self._unix_socket))
        except OSError:
            client.close()
            raise
        return client


@contextmanager
def held(path: Path) -> Iterator[Path]:
    """A socket at `path` that outlives those who accept from it: `Server(listener=path)`."""
    with subprocess.Popen([sys.executable, str(LISTENER), "hold", str(path)]) as holder:
        try:
            wait_until(Path(f"{path}.door").exists, "the socket is held")
            yield path
        finally:
            holder.terminate()


def fetch_token(connection: http.client.HTTPConnection, client: str, secret: str) -> str:
    """An access token with all scopes of a client, as any OAuth library gets it; closes the connection."""
    basic = base64.b64encode(f"{client}:{secret}".encode()).decode()
    fields = {"Authorization": f"Basic {basic}", "Content-Type": "application/x-www-form-urlencoded"}
    try:
        connection.request("POST", "/oauth2/token", b"grant_type=client_credentials", fields)
        answer = Answer(connection.getresponse())
    finally:
        connection.close()
    assert answer.status == 200, answer
    return str(answer.json()["access_token"])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"{self.status} {self.body[:300]!r}"


def read_all(client: socket.socket) -> bytes:
    parts = []
    with suppress(TimeoutError, ConnectionResetError):
        while part := client.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def read_answer(client: socket.socket) -> bytes:
    """One answer with a Content-Length, headers included."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(client)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        body += _some(client)
    assert len(body) == length, "more came than the answer"
    return head + b"\r\n\r\n" + body


def is_kept(answer: bytes) -> bool:
    return b"connection: close" not in answer.partition(b"\r\n\r\n")[0].lower()


@contextmanager
def kept_connection(server: Server, *pieces: bytes) -> Iterator[tuple[socket.socket, bytes]]:
    """A connection that the server keeps after its answer to `pieces`, which llhttp does unless that took it long."""
    for _ in range(20):
        with server.connect() as client:
            for piece in pieces:
                client.sendall(piece)
            answer = read_answer(client)
            if is_kept(answer):
                yield client, answer
                return
    raise AssertionError(f"no connection is kept: {answer!r}")


def _some(client: socket.socket) -> bytes:
    part = client.recv(1 << 16)
    if not part:
        raise ConnectionError("closed in the middle of an answer")
    return part


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_until(true: Callable[[], Any], what: str, seconds: float = 20) -> None:
    """Poll until `true()`; fail with `what` was expected after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)
