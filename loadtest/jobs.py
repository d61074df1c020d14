"""What batch jobs gain beside sending rows one by one, and what they cost those who wait for predictions meanwhile.

python loadtest/jobs.py --parts throughput,interactive --rounds 5 --rows 10000 --seconds 8

Tiercel, two llhttp workers, with a Redis and a batch worker of its own. `throughput`: a job of breast-cancer, from its
POST until its results are there, beside the same rows one by one on one kept-alive connection; each answer must be what
the job says of the row. `interactive`: an open loop, with and without a job of photos that keeps the batch worker busy.
"""

import argparse
import base64
import contextlib
import dataclasses
import http.client
import itertools
import json
import math
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import bench
import report
from addresses import HOST
from exchanges import Exchange
from generator import Load
from processes import busy_seconds, machine
from samples import Sample, take_sample
from scenarios import TOLERANCE, Scenario, example_row, image, photos, tabular, thumbnail
from server import Server
from systems import System, tiercel

WORKERS = 2
BATCH_WORKER = "batch_worker.main"
POLL_SECONDS, END_SECONDS = 0.01, 300.0
SLICE_SECONDS = 1.0
TARGET_RATIO, TARGET_P99 = 20, 1.5
# Modest, so that p99 is that of who finds a worker idle: a fifth or less of what two CPUs can do.
OPEN = [dataclasses.replace(tabular(), rate=500.0), dataclasses.replace(image(), rate=30.0)]
# A job that lasts longer than an open loop, with 8 ms of CPU for each.
PHOTOS, MAX_JOB_BYTES = 4000, 256 << 20
ALONE, BESIDE = "alone", "beside a job"


@dataclasses.dataclass(frozen=True)
class Round:
    """Rows per second as a job and one by one; CPUs that were busy with something else; what was wrong."""

    job: float
    single: float
    others: float
    error: str

    @property
    def ratio(self) -> float:
        return self.job / self.single


class Client:
    """Of `/v1/jobs`."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection(HOST, server.address.port, timeout=60)

    def run(self, model: str, lines: bytes) -> bytes:
        """Submit a job, wait for its end, and fetch its results."""
        job = self._submit(model, lines)
        deadline = time.monotonic() + END_SECONDS
        while (status := self._describe(job)["status"]) != "succeeded":
            if status not in ("queued", "running") or time.monotonic() > deadline:
                raise RuntimeError(f"job {job}: expected it to succeed, got {status}")
            time.sleep(POLL_SECONDS)
        return self._ask("GET", f"/v1/jobs/{job}/results")

    @contextlib.contextmanager
    def running(self, model: str, lines: bytes) -> Iterator[None]:
        """While a job runs, which must last longer."""
        job = self._submit(model, lines)
        while not self._describe(job)["done"]:
            time.sleep(POLL_SECONDS)
        try:
            yield
            if (status := self._describe(job)["status"]) != "running":
                raise RuntimeError(f"job {job}: expected it to run all the time, got {status}")
        finally:
            self._ask("DELETE", f"/v1/jobs/{job}")
            while self._describe(job)["status"] == "running":
                time.sleep(POLL_SECONDS)

    def _submit(self, model: str, lines: bytes) -> str:
        return str(json.loads(self._ask("POST", f"/v1/jobs?model={model}", lines))["id"])

    def _describe(self, job: str) -> dict[str, Any]:
        described: dict[str, Any] = json.loads(self._ask("GET", f"/v1/jobs/{job}"))
        return described

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        self._connection.request(method, path, body, {"Content-Type": "application/x-ndjson"})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status not in (http.HTTPStatus.OK, http.HTTPStatus.ACCEPTED):
            raise RuntimeError(f"{method} {path}: expected 200 or 202, got {answer.status} {content[:300]!r}")
        return content


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends with us
    print("\n".join(f"{key:12} {value}" for key, value in machine().items()), flush=True)
    failed = 0
    with contextlib.ExitStack() as running:
        server = Server(with_jobs(arguments.scheduling), WORKERS)
        bench.start([server], running, times=1)
        if arguments.group:
            move_worker(server, arguments.group)
        if "throughput" in arguments.parts:
            failed |= compare_throughput(server, arguments.rows, arguments.rounds)
        if "interactive" in arguments.parts:
            failed |= compare_latency(server, arguments.rounds, arguments.seconds)
    return failed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["throughput", "interactive"]
    parser.add_argument("--parts", type=bench.some_of(parts), default=parts, metavar=",".join(parts))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000, help="of the tabular job")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each open loop")
    parser.add_argument("--scheduling", default="idle", help="TIERCEL_BATCH_SCHEDULING")
    parser.add_argument("--group", type=Path, help="a cgroup for the batch worker, as a container is")
    return parser.parse_args()


def move_worker(server: Server, group: Path) -> None:
    for pid in server.pids():
        if BATCH_WORKER in Path(f"/proc/{pid}/cmdline").read_text():
            (group / "cgroup.procs").write_text(str(pid))


def with_jobs(scheduling: str) -> System:
    """The default worker class with a Redis, and a batch worker as `make serve` starts it."""
    usual = tiercel("llhttp")
    environ = {
        "TIERCEL_QUEUE_URL": "unix://{redis}",
        "TIERCEL_JOBS_DIR": "{redis}.jobs",
        "TIERCEL_MAX_JOB_BYTES": str(MAX_JOB_BYTES),
        "TIERCEL_BATCH_SCHEDULING": scheduling,
    }
    commands = (*usual.commands, BATCH_WORKER)
    return dataclasses.replace(usual, commands=commands, environ=usual.environ | environ, redis=True)


def compare_throughput(server: Server, count: int, rounds: int) -> int:
    rows, client = list(some_rows(count)), Client(server)
    client.run("breast-cancer", json.dumps(rows[0]).encode())  # so that the worker has the model
    taken = [throughput(server, client, rows) for _ in range(rounds)]
    ratios = [each.ratio for each in taken]
    print(f"\nthroughput: {count:,} rows of breast-cancer\n")
    columns = {"as a job": [each.job for each in taken], "one by one": [each.single for each in taken]}
    table = [[name, f"{median(rates):,.0f}", f"{min(rates):,.0f}-{max(rates):,.0f}"] for name, rates in columns.items()]
    print(report.table(["", "rows/s", "lowest-highest"], table))
    print(
        f"\nas a job / one by one: {median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f}), at least {TARGET_RATIO}"
    )
    print(f"others: {median(each.others for each in taken):.2f}", flush=True)
    errors = [each.error for each in taken if each.error]
    print("\n".join(errors), file=sys.stderr)
    return 1 if errors else 0


def throughput(server: Server, client: Client, rows: Sequence[list[float]]) -> Round:
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    busy, used, began = busy_seconds(), spent(server), time.perf_counter()
    answer = client.run("breast-cancer", lines)
    seconds = time.perf_counter() - began
    results = [json.loads(line) for line in answer.splitlines()]
    if [result["index"] for result in results] != list(range(len(rows))):
        return Round(len(rows) / seconds, math.nan, math.nan, f"job: expected {len(rows)} rows, got {len(results)}")
    rate, error = one_by_one(server, list(map(exchange, rows, [result["prediction"] for result in results])))
    others = busy_seconds() - busy - (spent(server) - used)
    return Round(len(rows) / seconds, rate, others / (time.perf_counter() - began), error)


def spent(server: Server) -> float:
    """CPU time of the system and of this process."""
    return sum(server.cpu().values()) + time.process_time()


def one_by_one(server: Server, exchanges: Sequence[Exchange]) -> tuple[float, str]:
    """Rows per second, until all have been answered; and the first answer that was wrong."""
    outcomes = []
    with Load(server.address, exchanges, 1) as load:
        while sum(outcome.completed for outcome in outcomes) < len(exchanges):
            outcomes.append(load.run(SLICE_SECONDS))
    return median(outcome.rate for outcome in outcomes), next(filter(None, (each.first_error for each in outcomes)), "")


def exchange(row: list[float], prediction: Any) -> Exchange:
    """The row as a request of its own, which must be answered as the job has answered it."""
    body = json.dumps({"instances": [row]}).encode()
    head = (
        "POST /v1/models/breast-cancer:predict HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    def fault(answer: bytes) -> str | None:
        got = json.loads(answer).get("predictions")
        return None if is_same([prediction], got) else f"expected {prediction} as in the job, got {answer[:300]!r}"

    return Exchange(head.encode() + body, fault)


def is_same(a: Any, b: Any) -> bool:
    """But for how a batch rounds."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(is_same, a, b))
    return math.isclose(a, b, abs_tol=TOLERANCE) if isinstance(a, float) else bool(a == b)


def some_rows(count: int) -> Iterator[list[float]]:
    """Like the example row, but for some percent of each feature."""
    row, draw = example_row(), random.Random(0)
    for _ in range(count):
        yield [round(value * draw.uniform(0.9, 1.1), 5) for value in row]


def compare_latency(server: Server, rounds: int, seconds: float) -> int:
    client, lines = Client(server), photo_lines()
    results: dict[str, report.Samples] = {}
    for scenario in OPEN:
        taken = results[scenario.name] = {ALONE: [], BESIDE: []}
        for number in range(rounds):
            for name in (ALONE, BESIDE) if number % 2 else (BESIDE, ALONE):
                job = client.running("efficientnet-lite0", lines) if name == BESIDE else contextlib.nullcontext()
                with job:
                    taken[name].append(measure(server, scenario, seconds, seed=number))
        print(f"\n{report.headline(scenario)}\n\n{report.scenario(taken, [(BESIDE, ALONE)])}")
        print(f"p99 wanted: at most {TARGET_P99}", flush=True)
    return bench.report_errors(results)


def photo_lines() -> bytes:
    """Thumbnails: what larger ones cost more is their decoding."""
    lines = [json.dumps({"b64": base64.b64encode(thumbnail(photo)).decode()}).encode() + b"\n" for photo, _ in photos()]
    return b"".join(itertools.islice(itertools.cycle(lines), PHOTOS))


def measure(server: Server, scenario: Scenario, seconds: float, seed: int) -> Sample:
    with Load(server.address, scenario.exchanges, scenario.connections) as load:
        load.run(scenario.warm_up_seconds)
        return take_sample(server.pids(), server.workers(), lambda: load.run_open(seconds, scenario.rate, seed))


if __name__ == "__main__":
    sys.exit(main())
