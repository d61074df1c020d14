"""The overload ladder: how many answers are still of use when up to ten times as much is asked as can be answered.

python loadtest/overload.py --systems edge/tiercel/llhttp,tiercel/llhttp --seconds 6 --png FILE
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import bench
import ladder
import ladder_plot
import report
from exchanges import Exchange
from generator import Load, poisson
from ladder import Ladder, Step, Usage
from outcomes import Outcome
from processes import busy_seconds, cpu_seconds, machine
from scenarios import classify, open_model, photo_exchange, photos, tabular, thumbnail
from server import Server
from systems import SYSTEMS

from inference_core.thread_plan import granted_cpus

SHARES = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
# A closed loop with so many finds the capacity; an open one has as many as it could need at ten times of it.
CLOSED_CONNECTIONS, OPEN_CONNECTIONS = 8, 2000
# After the overload; for longer than a server may take to recover.
CALM_SHARE, CALM_SECONDS = 0.5, ladder.TARGET_RECOVERY_SECONDS + 1
WARM_UP_SECONDS = 1.0
ALIVE = Exchange(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", lambda body: None)


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end with us
    exchanges = [
        dataclasses.replace(exchange, refusals=ladder.REFUSALS) for exchange in SCENARIOS[arguments.scenario]()
    ]
    ladders = []
    with own_cpu(shared=arguments.shared) as servers:
        print("\n".join(f"{key:12} {value}" for key, value in (machine() | where(servers)).items()), flush=True)
        for name in arguments.systems:
            with started(name, servers) as server:
                climbed = climb(server, exchanges, arguments.shares, arguments.seconds)
            ladders.append(climbed)
            print(f"\n{described(climbed)}", flush=True)
    if arguments.png:
        ladder_plot.draw(ladders, arguments.png)
    return report_errors(ladders)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in SYSTEMS if "tiercel/" in name]
    usual = ["edge/tiercel/llhttp", "tiercel/llhttp"]
    parser.add_argument("--systems", type=bench.some_of(names), default=usual, metavar=",".join(names))
    parser.add_argument("--scenario", choices=SCENARIOS, default="image")
    parser.add_argument("--shares", type=numbers, default=SHARES, metavar="X,...", help="of the capacity, in turn")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each step")
    parser.add_argument("--shared", action="store_true", help="the generator has no CPU of its own")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the ladders")
    return parser.parse_args()


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def thumbnails() -> list[Exchange]:
    """The example photos as of a client that knows what the model makes of them: 7 to 13 KB, a record of TLS each."""
    model = open_model("efficientnet-lite0")
    small = [thumbnail(photo) for photo, _ in photos()]
    return [photo_exchange(photo, classify(model, photo)) for photo in small]


SCENARIOS: dict[str, Callable[[], Sequence[Exchange]]] = {
    "image": thumbnails,
    "tabular": lambda: tabular().exchanges,
}


@contextlib.contextmanager
def own_cpu(*, shared: bool) -> Iterator[set[int]]:
    """The CPUs of the servers. Clients have their own: ours is the last one, where there are several."""
    granted = os.sched_getaffinity(0)
    ours = granted if shared or len(granted) == 1 else {max(granted)}
    os.sched_setaffinity(0, ours)
    try:
        yield granted - ours or granted
    finally:
        os.sched_setaffinity(0, granted)


def where(servers: set[int]) -> dict[str, str]:
    ours = os.sched_getaffinity(0)
    return {"servers on": f"CPU {sorted(servers)}", "generator on": f"CPU {sorted(ours)}"}


@contextlib.contextmanager
def started(name: str, cpus: set[int]) -> Iterator[Server]:
    """The server `name`, ready, on `cpus` only."""
    ours = os.sched_getaffinity(0)
    with contextlib.ExitStack() as running:
        os.sched_setaffinity(0, cpus)  # which processes inherit
        server = Server(SYSTEMS[name], granted_cpus())
        bench.start([server], running, times=1)
        os.sched_setaffinity(0, ours)
        yield server


def climb(server: Server, exchanges: Sequence[Exchange], shares: Sequence[float], seconds: float) -> Ladder:
    """All steps on the same connections, each after the answers to the one before; then down from the last of them."""
    closed = run_closed(server, exchanges, seconds)
    capacity = closed.rate
    with Load(server.address, exchanges, OPEN_CONNECTIONS) as load:
        steps = [take_step(server, load, share, capacity, seconds) for share in shares]
        down = come_down(server, load, shares[-1] * capacity, CALM_SHARE * capacity, seconds).with_errors_of(closed)
    recovered = ladder.recovery(down.answers, down.started + seconds)
    return Ladder(server.name, capacity, steps, recovered, down.errors, down.first_error)


def run_closed(server: Server, exchanges: Sequence[Exchange], seconds: float) -> Outcome:
    with Load(server.address, exchanges, CLOSED_CONNECTIONS) as load:
        warm_up = load.run(WARM_UP_SECONDS)
        return load.run(seconds).with_errors_of(warm_up)


def take_step(server: Server, load: Load, share: float, capacity: float, seconds: float) -> Step:
    opened = open_all(server, load)
    edge = edge_pids(server)
    api = [pid for pid in server.pids() if pid not in edge]
    busy, began = busy_seconds(), time.perf_counter()
    api_before, edge_before = spent(api), spent(edge)
    outcome = load.run_open(seconds, share * capacity, seed=int(100 * share)).with_errors_of(opened)
    elapsed = time.perf_counter() - began
    used = [spent(api) - api_before, spent(edge) - edge_before, outcome.cpu_seconds]
    others = max(0.0, busy_seconds() - busy - sum(used))
    return ladder.step(share, seconds, outcome, Usage(*(cpu / elapsed for cpu in [*used, others])))


def come_down(server: Server, load: Load, from_rate: float, to_rate: float, seconds: float) -> Outcome:
    """For `seconds` at the one rate, and without a pause for CALM_SECONDS at the other."""
    opened = open_all(server, load)
    after = (seconds + moment for moment in poisson(CALM_SECONDS, to_rate, seed=1))
    both = itertools.chain(poisson(seconds, from_rate, seed=0), after)
    return load.run_at(both, seconds + CALM_SECONDS).with_errors_of(opened)


def open_all(server: Server, load: Load) -> Outcome:
    """Before each step, as NGINX closes what is idle for 30 s; without TLS most connections end with an answer."""
    return load.open(ALIVE) if server.address.tls else Outcome(0.0)


def spent(pids: Sequence[int]) -> float:
    return sum(cpu_seconds(list(pids)).values())


def edge_pids(server: Server) -> list[int]:
    """Those of NGINX."""
    return [pid for pid in server.pids() if Path(f"/proc/{pid}/comm").read_text() == "nginx\n"]


def described(climbed: Ladder) -> str:
    head = f"{climbed.system}: capacity {climbed.capacity:,.0f} requests per second in a closed loop"
    return "\n\n".join([head, report.table(ladder.HEAD, ladder.rows(climbed)), "\n".join(ladder.verdicts(climbed))])


def report_errors(ladders: Sequence[Ladder]) -> int:
    """1 if an answer was missing or wrong, or was a refusal other than 429 and 503."""
    failed = [
        f"{climbed.system}: {count} errors, the first: {first}"
        for climbed in ladders
        for count, first in climbed.failures
    ]
    print("\n".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
