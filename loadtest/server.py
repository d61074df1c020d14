"""A system in processes of its own: how they start and end, and what is read from them."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from addresses import Address, free_port
from edge import ROOT, Edge
from generator import Load
from outcomes import Outcome
from processes import clean_environ, cpu_seconds, private_bytes, tree, workers
from samples import Sample, take_sample
from scenarios import SCENARIOS, Scenario
from systems import System, redis_server

READY_POLL_SECONDS = 0.005
READY_SECONDS = 30.0
STOP_SECONDS = 20.0


class Server:
    """`ready_seconds`: from each start to the first ready answer, where clients ask."""

    scenarios = tuple(SCENARIOS)

    def __init__(self, system: System, cpus: int) -> None:
        self.name = system.name
        self.ready_seconds: list[float] = []
        self._temporary = tempfile.TemporaryDirectory(prefix="bench-")  # as long as the server
        self._files = Path(self._temporary.name)
        port, api_socket, redis = free_port(), self._files / "api.sock", self._files / "redis.sock"
        values = {
            "port": port,
            "socket": api_socket,
            "redis": redis,
            "sink": free_port(),
            "python": sys.executable,
            "cpus": cpus,
        }
        self._folder = ROOT / system.folder
        self._commands = [[sys.executable, "-m", *command.format(**values).split()] for command in system.commands]
        self._environ = clean_environ() | {name: value.format(**values) for name, value in system.environ.items()}
        self.address = Address(port)
        if system.redis:
            self._commands.insert(0, redis_server(redis))
        if system.nginx:
            edge = Edge(self._files, api_socket, system.nginx)
            self._commands.append(edge.command)
            self._environ |= edge.environ
            self.address = edge.address
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        started = time.perf_counter()
        self._processes = [self._run(*numbered) for numbered in enumerate(self._commands)]
        while not self.address.is_ready():
            ended = any(process.poll() is not None for process in self._processes)
            if ended or time.perf_counter() - started > READY_SECONDS:
                raise RuntimeError(f"{self.name}: expected it to become ready, got:\n{self.log()}")
            time.sleep(READY_POLL_SECONDS)
        self.ready_seconds.append(time.perf_counter() - started)

    def stop(self) -> None:
        """In the opposite order: who asks ends before who answers."""
        while self._processes:
            process = self._processes.pop()
            pids = tree(process.pid) if process.poll() is None else []
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait()

    def measure(self, scenario: Scenario, seconds: float, seed: int) -> Sample:
        """`seed` decides when the requests of an open loop are due."""
        with Load(self.address, scenario.exchanges, scenario.connections) as load:
            warm_up = load.run(scenario.warm_up_seconds)
            rate = scenario.rate_of(warm_up.rate)

            def run() -> Outcome:
                outcome = load.run_open(seconds, rate, seed) if rate else load.run(seconds)
                return outcome.with_errors_of(warm_up)

            return take_sample(self.pids(), self.workers(), run)

    def cpu(self) -> dict[int, float]:
        return cpu_seconds(self.pids())

    def last_worker_private_bytes(self) -> int:
        return private_bytes(self.workers()[-1])

    def log(self) -> str:
        """The end of what each process wrote to standard error."""
        return "\n".join(file.read_text(errors="replace")[-2000:] for file in sorted(self._files.glob("*.errors")))

    def pids(self) -> list[int]:
        return [pid for process in self._processes for pid in tree(process.pid)]

    def workers(self) -> list[int]:
        return [pid for process in self._processes for pid in workers(tree(process.pid))]

    def _run(self, number: int, command: list[str]) -> subprocess.Popen[bytes]:
        """On standard output NGINX has its access log."""
        out_file, errors_file = self._files / f"{number}.out", self._files / f"{number}.errors"
        with out_file.open("ab") as out, errors_file.open("ab") as errors:
            return subprocess.Popen(command, cwd=self._folder, env=self._environ, stdout=out, stderr=errors)
