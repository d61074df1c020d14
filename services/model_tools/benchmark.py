"""Time models against each other on one thread, and say on what processor that was."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from model_tools.artifact import Feed
from model_tools.validate import Session

# The instruction sets that decide how fast ONNX Runtime's kernels are, by their names in /proc/cpuinfo.
INSTRUCTION_SETS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve")


def median_latencies(sessions: Mapping[str, Session], feed: Feed, rounds: int) -> dict[str, float]:
    """The median seconds of one call to each session."""
    calls = {name: partial(session.run, None, feed) for name, session in sessions.items()}
    return {name: statistics.median(values) for name, values in latencies(calls, rounds).items()}


def latencies(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each of `rounds` calls.

    They are interleaved, so that whatever else the machine does meanwhile falls on all alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def processor() -> str:
    """The machine's architecture and those of its instruction sets that matter here."""
    flags = _cpu_flags()
    return " ".join((platform.machine(), *(name for name in INSTRUCTION_SETS if name in flags)))


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return set()
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}
