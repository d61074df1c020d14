"""The servers that are compared: how each is started, and what is read from its processes."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from generator import Load
from processes import clean_environ, cpu_seconds, private_bytes, tree, workers
from samples import Sample, take_sample
from scenarios import Scenario

ROOT = Path(__file__).resolve().parents[1]
READY_POLL_SECONDS = 0.005
READY_SECONDS = 30.0
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class System:
    """`command` and `environ` may hold {port} and {cpus}."""

    name: str
    command: str
    folder: str = "."
    environ: dict[str, str] = field(default_factory=dict)


def _tiercel(worker_class: str) -> System:
    environ = {
        "TIERCEL_WORKER_CLASS": worker_class,
        "TIERCEL_WORKERS": "{cpus}",
        "TIERCEL_BIND": "127.0.0.1:{port}",
        "TIERCEL_DRAIN_SECONDS": "0",
    }
    return System(f"tiercel/{worker_class}", "gunicorn -c python:inference_api.gunicorn_conf", environ=environ)


# What stands in front of a server, such as NGINX with TLS, is to become an entry of its own: its port is measured,
# its processes are its own and the server's.
SYSTEMS = {
    system.name: system
    for system in (
        _tiercel("llhttp"),
        _tiercel("meinheld"),
        _tiercel("gthread"),
        System(
            "fastapi",
            "uvicorn --host 127.0.0.1 --port {port} --workers {cpus} --loop uvloop --http httptools "
            "--log-level warning --no-access-log fastapi_app:app",
            "loadtest/peers",
        ),
        System(
            "flask",
            "gunicorn --bind 127.0.0.1:{port} --worker-class gthread --workers {cpus} --threads 4 "
            "--log-level warning flask_app:app",
            "loadtest/peers",
        ),
    )
}


class Server:
    """A system in processes of its own. `ready_seconds`: from each start to the first ready answer."""

    scenarios = ("tabular", "image")

    def __init__(self, system: System, cpus: int) -> None:
        self.name = system.name
        self.ready_seconds: list[float] = []
        self._port = free_port()
        self._folder = ROOT / system.folder
        values = {"port": self._port, "cpus": cpus}
        self._command = [sys.executable, "-m", *system.command.format(**values).split()]
        self._environ = clean_environ() | {name: value.format(**values) for name, value in system.environ.items()}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile(prefix=f"bench-{system.name.replace('/', '-')}-")  # noqa: SIM115  # as long as the server

    def start(self) -> None:
        started = time.perf_counter()
        self._process = subprocess.Popen(
            self._command, cwd=self._folder, env=self._environ, stdout=self._log, stderr=self._log
        )
        while not self._is_ready():
            if self._process.poll() is not None or time.perf_counter() - started > READY_SECONDS:
                raise RuntimeError(f"{self.name}: expected it to become ready, got:\n{self.log()}")
            time.sleep(READY_POLL_SECONDS)
        self.ready_seconds.append(time.perf_counter() - started)

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            for pid in self._pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()

    def measure(self, scenario: Scenario, warm_up_seconds: float, seconds: float) -> Sample:
        with Load(("127.0.0.1", self._port), scenario.exchanges, scenario.connections) as load:
            warm_up = load.run(warm_up_seconds)
            pids = self._pids()
            return take_sample(pids, workers(pids), lambda: load.run(seconds).with_errors_of(warm_up))

    def cpu(self) -> dict[int, float]:
        return cpu_seconds(self._pids())

    def last_worker_private_bytes(self) -> int:
        return private_bytes(workers(self._pids())[-1])

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-4000:]

    def _pids(self) -> list[int]:
        return tree(self._process.pid) if self._process else []

    def _is_ready(self) -> bool:
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1)
            try:
                connection.request("GET", "/v2/health/ready")
                return connection.getresponse().status == http.HTTPStatus.OK
            finally:
                connection.close()
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
