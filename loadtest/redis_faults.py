"""What predictions cost when their server's Redis is refused, silent, slow or flapping, beside when it is well.

python loadtest/redis_faults.py --rounds 5 --seconds 4 --rate 200

An open loop asks Tiercel, two llhttp workers, for tabular predictions of a model with `cache = "on"`, under a quota.
None was asked for before, so that each request has several commands for Redis, which is behind tests/fault_proxy.py;
`direct`: a server without the proxy, whose latencies are what others add to. A fault begins between two requests.
`first` are those that are due in the second from then on: workers run into the fault, until they no longer ask.
`later` are those that are due in the --seconds after that.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import bench
import report
from edge import ROOT
from generator import Load
from samples import Sample, take_sample
from scenarios import MODELS, example_row, row_exchanges
from server import Server
from systems import System, redis_server, tiercel

sys.path.append(str(ROOT / "tests"))
from fault_proxy import FaultProxy

Mode = tuple[str, float]

WORKERS = 2
CONNECTIONS = 64
FIRST_SECONDS = 1.0
# A row comes again, but only when it has long been forgotten.
TTL_SECONDS, ROWS_SECONDS = 1, 5
USE_SECONDS, RETURN_SECONDS = 0.5, 20.0
# Of the usual number of commands in a request: more than if one worker alone asked.
IN_USE = 0.9
DIRECT, HEALTHY = "direct", ("pass", 0.0)
# Modes of FaultProxy.
FAULTS = {
    DIRECT: HEALTHY,
    "healthy": HEALTHY,
    "refused": ("refuse", 0.0),
    "black hole": ("swallow", 0.0),
    "200 ms slow": ("delay", 0.2),
    "flapping, 0.5 s": ("flap", 0.5),
}


class Proxy:
    """A FaultProxy in a process of its own, as the load generator is not to share Python's lock."""

    def __init__(self, upstream: Path) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, upstream), daemon=True)
        self._process.start()
        self.url: str = self._pipe.recv()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def set(self, mode: Mode) -> None:
        self._pipe.send(mode)
        self._pipe.recv()

    def commands(self) -> int:
        """How many came since the last time."""
        self._pipe.send(None)
        count: int = self._pipe.recv()
        return count


def _serve(pipe: Connection, upstream: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with FaultProxy(str(upstream)) as proxy:
        pipe.send(proxy.url)
        while True:
            if mode := pipe.recv():
                proxy.set(*mode)
            pipe.send(len(proxy.commands))
            proxy.commands.clear()


@dataclass(frozen=True)
class Window:
    """`commands`: those that came to the proxy, per answer."""

    sample: Sample
    commands: float


# Of each fault, for each round, the `first` window and the `later` one.
Windows = dict[str, list[tuple[Window, Window]]]


class Stage:
    """The servers that are asked, and all that they need."""

    def __init__(self, folder: Path, running: contextlib.ExitStack, rate: float) -> None:
        socket, models = folder / "redis.sock", _models(folder)
        redis = running.enter_context(subprocess.Popen(redis_server(socket), stdout=subprocess.DEVNULL))
        running.callback(redis.terminate)
        self._proxy = Proxy(socket)
        self._direct, self._proxied = servers = [
            Server(_system(models, url), WORKERS) for url in (f"unix://{socket}", self._proxy.url)
        ]
        bench.start(servers, running, times=1)
        exchanges = row_exchanges(_rows(int(ROWS_SECONDS * rate) * len(servers)))
        self._loads = {
            server: running.enter_context(Load(server.address, exchanges[number :: len(servers)], CONNECTIONS))
            for number, server in enumerate(servers)
        }
        self._rate = rate
        self._beside = [self._proxy.pid, redis.pid]
        self._usual = self._run(self._proxied, 2 * USE_SECONDS, seed=0).commands

    def windows(self, fault: str, seconds: float, seed: int) -> tuple[Window, Window]:
        server = self._direct if fault == DIRECT else self._proxied
        self._wait_until_used()
        self._run(server, USE_SECONDS, seed)
        self._proxy.set(FAULTS[fault])
        try:
            return self._run(server, FIRST_SECONDS, seed), self._run(server, seconds, seed)
        finally:
            self._proxy.set(HEALTHY)

    def _wait_until_used(self) -> None:
        """Until the workers behind the proxy ask Redis as often as they usually do."""
        deadline = time.monotonic() + RETURN_SECONDS
        while self._run(self._proxied, USE_SECONDS, seed=0).commands < IN_USE * self._usual:
            if time.monotonic() > deadline:
                raise RuntimeError(f"expected workers to ask Redis again within {RETURN_SECONDS:g} s")

    def _run(self, server: Server, seconds: float, seed: int) -> Window:
        self._proxy.commands()
        pids = [*server.pids(), *self._beside]
        sample = take_sample(pids, server.workers(), lambda: self._loads[server].run_open(seconds, self._rate, seed))
        return Window(sample, self._proxy.commands() / sample.answers)


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends with us
    taken: Windows = {fault: [] for fault in FAULTS}
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, contextlib.ExitStack() as running:
        stage = Stage(Path(folder), running, arguments.rate)
        for number in range(arguments.rounds):
            for fault in FAULTS:
                taken[fault].append(stage.windows(fault, arguments.seconds, seed=number))
    print(tables(taken))
    return bench.report_errors({fault: _samples(windows) for fault, windows in taken.items()})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement, after the first second")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    return parser.parse_args()


def tables(taken: Windows) -> str:
    return "\n\n".join(_table(taken, which, name) for which, name in enumerate(("first", "later")))


def _table(taken: Windows, which: int, name: str) -> str:
    """Medians of the rounds, and what is added to the direct window of the same round; `worst`: of all answers."""
    head = [name, "answers", "wrong", "p50 ms", "p99 ms", "added p99", "lowest-highest", "worst ms", "late ms"]
    rows = []
    for fault, rounds in taken.items():
        windows, direct = ([pair[which] for pair in of] for of in (rounds, taken[DIRECT]))
        samples = [window.sample for window in windows]
        added = [window.sample.p99 - usual.sample.p99 for window, usual in zip(windows, direct, strict=True)]
        rows.append(
            [
                fault,
                f"{sum(sample.answers for sample in samples):,}",
                str(sum(sample.errors for sample in samples)),
                f"{median(sample.p50 for sample in samples):.2f}",
                f"{median(sample.p99 for sample in samples):.2f}",
                f"{median(added):+.2f}",
                f"{min(added):+.2f} to {max(added):+.2f}",
                f"{max(sample.worst for sample in samples):.1f}",
                f"{median(sample.late for sample in samples):.2f}",
                f"{median(window.commands for window in windows):.2f}",
                f"{median(sample.others for sample in samples):.2f}",
            ]
        )
    return report.table([*head, "commands per request", "others"], rows)


def _samples(windows: list[tuple[Window, Window]]) -> report.Samples:
    first, later = zip(*windows, strict=True)
    return {"first": [window.sample for window in first], "later": [window.sample for window in later]}


def _system(models: Path, url: str) -> System:
    system = tiercel("llhttp")
    environ = {
        "TIERCEL_MODELS_DIR": str(models),
        "TIERCEL_CACHE_URL": url,
        "TIERCEL_CACHE_TTL_SECONDS": str(TTL_SECONDS),
        "TIERCEL_QUOTA_REQUESTS": str(10**9),
    }
    return dataclasses.replace(system, environ=system.environ | environ)


def _models(folder: Path) -> Path:
    model = folder / "models/breast-cancer"
    shutil.copytree(MODELS / model.name, model)
    (model / "model.toml").write_text('cache = "on"\n')
    return model.parent


def _rows(count: int) -> Iterator[list[float]]:
    """Like the example row, but for some percent of each feature."""
    row, draw = example_row(), random.Random(0)
    for _ in range(count):
        yield [round(value * draw.uniform(0.9, 1.1), 5) for value in row]


if __name__ == "__main__":
    sys.exit(main())
