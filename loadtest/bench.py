"""`make bench`: Tiercel beside bare FastAPI and Flask servers, and beside no server at all, as ratios of one run.

python loadtest/bench.py --scenario tabular --systems tiercel/llhttp,fastapi --rounds 5 --seconds 3 --json FILE
python loadtest/bench.py --edge                      all of them behind NGINX, over TLS
python loadtest/bench.py --redis                     Tiercel with a prediction cache, with quotas, and with neither
python loadtest/bench.py --observed                  Tiercel observed by nobody, as usual, and with traces
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import report
from in_process import InProcess
from processes import machine
from scenarios import SCENARIOS, Scenario
from server import Server
from systems import DIRECT, EDGE, OBSERVED, REDIS, SYSTEMS, is_installed

from inference_core.thread_plan import granted_cpus

# How often each server is started, for the median time until it is ready; the last one stays.
STARTS = 3
IDLE_SECONDS = 2.0
NAMES = [*SYSTEMS, InProcess.name]
# What is asked unless said otherwise; and where Redis may be of use, or in the way.
USUAL = ["tabular", "image", "tabular-1", "tabular-open", "image-open"]
WITH_REDIS = ["tabular", "tabular-1", "image", "image-unique"]
# Photos that were seen before, and such as were not.
HITS, MISSES = "image", "image-unique"

Measured = Server | InProcess


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end with us
    where = machine() | {"workers": str(granted_cpus())}
    print("\n".join(f"{key:12} {value}" for key, value in where.items()), flush=True)
    results: dict[str, report.Samples] = {}
    with contextlib.ExitStack() as running:
        systems = [make(name, granted_cpus()) for name in arguments.systems]
        start(systems, running)
        servers = [system for system in systems if isinstance(system, Server)]
        idle = idle_cpus(servers)
        for scenario in (SCENARIOS[name]() for name in arguments.scenario):
            print(f"\n{report.headline(scenario)}", flush=True)
            taken = results[scenario.name] = measure(systems, scenario, arguments.rounds, arguments.seconds)
            print(report.scenario(taken, report.comparisons(taken)), flush=True)
        if {HITS, MISSES} <= results.keys():
            print(f"\n{report.across(results, HITS, MISSES)}", flush=True)
        footprints = [footprint(server, idle[server.name]) for server in servers]
    print(f"\n{report.footprints(footprints)}")
    if arguments.json:
        write_json(arguments.json, {"machine": where, "servers": footprints, "scenarios": results})
    return report_errors(results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=some_of(SCENARIOS), metavar=",".join(SCENARIOS))
    parser.add_argument("--systems", type=some_of(NAMES), metavar=",".join(NAMES))
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--edge", action="store_true", help="systems behind NGINX instead, unless named")
    kinds.add_argument("--redis", action="store_true", help="Tiercel with and without Redis instead, unless named")
    kinds.add_argument("--observed", action="store_true", help="Tiercel observed or not instead, unless named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every round")
    arguments = parser.parse_args()
    usual = WITH_REDIS if arguments.redis else ["tabular"] if arguments.observed else USUAL
    arguments.scenario = arguments.scenario or usual
    arguments.systems = arguments.systems or usual_systems(arguments)
    return arguments


def usual_systems(arguments: argparse.Namespace) -> list[str]:
    if arguments.redis:
        return [system.name for system in REDIS]
    if arguments.observed:
        return [system.name for system in OBSERVED]
    return [system.name for system in (EDGE if arguments.edge else DIRECT) if is_installed(system)] + [InProcess.name]


def some_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    def some(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = sorted(set(chosen) - set(names))
        if unknown:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(names)}, got {unknown[0]}")
        return chosen

    return some


def make(name: str, cpus: int) -> Measured:
    return InProcess(cpus) if name == InProcess.name else Server(SYSTEMS[name], cpus)


def start(systems: Sequence[Measured], running: contextlib.ExitStack, times: int = STARTS) -> None:
    """Until they are ready; `running` ends them."""
    for system in systems:
        running.callback(system.stop)
    for _ in range(times):
        for system in systems:
            system.stop()
            system.start()
    time.sleep(1)  # workers that are still loading


def idle_cpus(servers: list[Server]) -> dict[str, float]:
    """The CPUs that each server uses while nobody asks it for anything, and so takes from the one that is measured."""
    before = {server.name: sum(server.cpu().values()) for server in servers}
    time.sleep(IDLE_SECONDS)
    return {server.name: (sum(server.cpu().values()) - before[server.name]) / IDLE_SECONDS for server in servers}


def measure(systems: Sequence[Measured], scenario: Scenario, rounds: int, seconds: float) -> report.Samples:
    """Every system in turn, and that once per round, so that what changes on the machine meanwhile changes for all.

    The last of a round is the first of the next: what disturbs at intervals must not meet the same one each time.
    """
    samples: report.Samples = {system.name: [] for system in systems if scenario.name in system.scenarios}
    taking_part = collections.deque(system for system in systems if system.name in samples)
    for number in range(rounds):
        for system in taking_part:
            samples[system.name].append(system.measure(scenario, seconds, seed=number))
        taking_part.rotate()
    return samples


def footprint(server: Server, idle: float) -> report.Footprint:
    return report.Footprint(server.name, server.ready_seconds, server.last_worker_private_bytes(), idle)


def write_json(path: Path, figures: dict[str, Any]) -> None:
    path.write_text(json.dumps(figures, indent=1, default=dataclasses.asdict) + "\n")


def report_errors(results: dict[str, report.Samples]) -> int:
    """1 if any answer was missing or wrong: then no figure of the run counts."""
    failed = [
        f"{scenario}, {name}: {sample.errors} errors, the first: {sample.first_error}"
        for scenario, samples in results.items()
        for name, taken in samples.items()
        for sample in taken
        if sample.errors
    ]
    print("\n".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
