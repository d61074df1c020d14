"""Ways for NGINX to hand requests to workers, as ratios of one run: what ARCHITECTURE.md chose from, to be repeated.

python loadtest/dispatch.py --scenario tabular,image --rounds 5 --seconds 3

    shipped         one socket for all workers, connections kept, closed by slow answers
    kept            one socket, connections kept whatever an answer took
    per request     one socket, a connection per request
    own sockets     a socket per worker, least_conn, connections kept, closed by slow answers
"""

import argparse
import contextlib
import dataclasses
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import bench
import report
from edge import NGINX
from scenarios import SCENARIOS
from server import Server
from systems import GUNICORN, System, behind_nginx, held, tiercel

from inference_core.thread_plan import granted_cpus

Edits = dict[str, list[tuple[str, str]]]

UPSTREAM, PROXY = "snippets/upstream.conf", "snippets/proxy.conf"
PER_REQUEST: Edits = {
    UPSTREAM: [(r"\n    keepalive[^\n]*", "")],
    PROXY: [(r'proxy_set_header Connection "";', "proxy_set_header Connection close;")],
}
# A configuration of Gunicorn for workers that keep connections.
KEPT = """
import math
from inference_api.gunicorn_conf import *
from inference_api.workers import llhttp
llhttp.KEEP_WITHIN_SECONDS = math.inf
"""


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end with us
    results: dict[str, report.Samples] = {}
    with tempfile.TemporaryDirectory(prefix="dispatch-") as folder, contextlib.ExitStack() as running:
        systems = [Server(way, granted_cpus()) for way in ways(Path(folder), granted_cpus())]
        bench.start(systems, running, times=1)
        for name in arguments.scenario:
            scenario = SCENARIOS[name]()
            print(f"\n{report.headline(scenario)}", flush=True)
            taken = results[name] = bench.measure(systems, scenario, arguments.rounds, arguments.seconds)
            first, *others = taken
            print(report.scenario(taken, [(other, first) for other in others]), flush=True)
    return bench.report_errors(results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=bench.some_of(SCENARIOS), default=["tabular", "image"], metavar="NAME,...")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    return parser.parse_args()


def ways(folder: Path, workers: int) -> list[System]:
    shipped, conf = held("llhttp"), folder / "kept.py"
    conf.write_text(KEPT)
    kept = [command.replace("python:inference_api.gunicorn_conf", str(conf)) for command in shipped.commands]
    alone = [f"{GUNICORN} --workers 1 --bind unix:{{socket}}.{number}" for number in range(workers)]
    return [
        named("shipped", shipped, NGINX),
        named("kept", tiercel("llhttp", *kept), NGINX),
        named("per request", shipped, edited(folder / "per-request", PER_REQUEST)),
        named("own sockets", tiercel("llhttp", *alone), edited(folder / "own-sockets", own_sockets(workers))),
    ]


def named(name: str, system: System, nginx: Path) -> System:
    return dataclasses.replace(behind_nginx(system, nginx), name=name)


def own_sockets(workers: int) -> Edits:
    servers = [f"server unix:${{API_SOCKET}}.{number} max_fails=0;" for number in range(workers)]
    return {UPSTREAM: [(r"server unix:.*", "\n    ".join(["zone api 64k;", "least_conn;", *servers]))]}


def edited(folder: Path, edits: Edits) -> Path:
    """A copy of NGINX's configuration with the `edits` made."""
    shutil.copytree(NGINX, folder)
    for name, replacements in edits.items():
        text = (folder / name).read_text()
        for pattern, replacement in replacements:
            text, found = re.subn(pattern, replacement, text)
            if not found:
                raise ValueError(f"{name}: expected {pattern!r}, found no such text")
        (folder / name).write_text(text)
    return folder


if __name__ == "__main__":
    sys.exit(main())
