"""`make bench`: Tiercel beside bare FastAPI and Flask servers, and beside no server at all, as ratios of one run.

python loadtest/bench.py --scenario tabular --systems tiercel/llhttp,fastapi --rounds 5 --seconds 3 --json FILE
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import report
from in_process import InProcess
from processes import machine
from scenarios import SCENARIOS, Scenario
from systems import SYSTEMS, Server

from inference_core.thread_plan import granted_cpus

WARM_UP_SECONDS = 0.5
# How often each server is started, for the median time until it is ready; the last one stays.
STARTS = 3
IDLE_SECONDS = 2.0
NAMES = [*SYSTEMS, InProcess.name]
# meinheld needs a compiler to install, and a Python before 3.13.
INSTALLED = [name for name in NAMES if name != "tiercel/meinheld" or importlib.util.find_spec("meinheld")]

Measured = Server | InProcess


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end with us
    where = machine() | {"workers": str(granted_cpus())}
    print("\n".join(f"{key:12} {value}" for key, value in where.items()), flush=True)
    results: dict[str, report.Samples] = {}
    with contextlib.ExitStack() as running:
        systems = start(arguments.systems, granted_cpus(), running)
        servers = [system for system in systems if isinstance(system, Server)]
        idle = idle_cpus(servers)
        for name in arguments.scenario:
            scenario = SCENARIOS[name]()
            print(f"\n{report.headline(scenario)}", flush=True)
            results[name] = measure(systems, scenario, arguments)
            print(report.scenario(results[name]), flush=True)
        footprints = [footprint(server, idle[server.name]) for server in servers]
    print(f"\n{report.footprints(footprints)}")
    if arguments.json:
        write_json(arguments.json, {"machine": where, "servers": footprints, "scenarios": results})
    return report_errors(results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=some_of(SCENARIOS), default=list(SCENARIOS), metavar=",".join(SCENARIOS))
    parser.add_argument("--systems", type=some_of(INSTALLED), default=INSTALLED, metavar=",".join(NAMES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every round")
    return parser.parse_args()


def some_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    def some(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = sorted(set(chosen) - set(names))
        if unknown:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(names)}, got {unknown[0]}")
        return chosen

    return some


def start(names: list[str], cpus: int, running: contextlib.ExitStack) -> list[Measured]:
    """The systems called `names`, ready; `running` ends them."""
    systems: list[Measured] = [
        InProcess(cpus) if name == InProcess.name else Server(SYSTEMS[name], cpus) for name in names
    ]
    for system in systems:
        running.callback(system.stop)
    for _ in range(STARTS):
        for system in systems:
            system.stop()
            system.start()
    time.sleep(1)  # workers that are still loading
    return systems


def idle_cpus(servers: list[Server]) -> dict[str, float]:
    """The CPUs that each server uses while nobody asks it for anything, and so takes from the one that is measured."""
    before = {server.name: sum(server.cpu().values()) for server in servers}
    time.sleep(IDLE_SECONDS)
    return {server.name: (sum(server.cpu().values()) - before[server.name]) / IDLE_SECONDS for server in servers}


def measure(systems: list[Measured], scenario: Scenario, arguments: argparse.Namespace) -> report.Samples:
    """Every system in turn, and that once per round, so that what changes on the machine meanwhile changes for all."""
    samples: report.Samples = {system.name: [] for system in systems if scenario.name in system.scenarios}
    for _ in range(arguments.rounds):
        for system in systems:
            if system.name in samples:
                samples[system.name].append(system.measure(scenario, WARM_UP_SECONDS, arguments.seconds))
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
