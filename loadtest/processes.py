"""What Linux says of processes and of the machine: CPU time, private memory, who else is busy."""

import importlib.metadata
import os
import platform
import re
import subprocess
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
# Of the caller's environment, what would change how the measured processes compute.
DROPPED = ("OPENBLAS_", "OMP_", "MKL_", "TIERCEL_", "EDGE_", "GUNICORN_", "WEB_CONCURRENCY", "PYTHON")
PACKAGES = (
    "falcon gunicorn meinheld httptools msgspec onnxruntime numpy pillow "
    "redis fastapi starlette pydantic uvicorn uvloop flask werkzeug"
)
# As NGINX and Redis tell theirs.
VERSION = re.compile(r"\b(nginx|OpenSSL|Redis server)(?:/| v=| )([\d.]+)")


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    children = (PROC / f"{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in tree(int(child)))]


def workers(pids: list[int]) -> list[int]:
    """Of a process's `tree`, those below it that run models, oldest first; uvicorn has one more, a resource tracker."""
    return sorted(pid for pid in pids[1:] if "onnxruntime" in (PROC / f"{pid}/maps").read_text())


def cpu_seconds(pids: list[int]) -> dict[int, float]:
    """User and system time of each process that still runs, all threads (proc(5): fields 14 and 15 of stat)."""
    seconds = {}
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = (PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
            seconds[pid] = (int(fields[11]) + int(fields[12])) / TICKS
    return seconds


def busy_seconds() -> float:
    """CPU time that all processes of the machine have used together, the time stolen by other machines included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, (PROC / "stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def private_bytes(pid: int) -> int:
    """Unique set size: what would come free if the process ended."""
    rollup = (PROC / f"{pid}/smaps_rollup").read_text()
    return sum(int(size) << 10 for size in re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB", rollup, re.MULTILINE))


def clean_environ() -> dict[str, str]:
    """The environment for what is measured: as a user's shell has it, and nothing that reports usage to others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
    return kept | {"ORT_DISABLE_TELEMETRY": "1"}


def machine() -> dict[str, str]:
    """Where the figures were made."""
    names = re.findall(r"^model name\s*: (.*)$", (PROC / "cpuinfo").read_text(), re.MULTILINE)
    return {
        "processor": names[0] if names else platform.machine(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version for name in PACKAGES.split() if (version := _version(name))},
        **_versions("nginx", "-V"),
        **_versions("redis-server", "--version"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions(*command: str) -> dict[str, str]:
    """Of a program and of its OpenSSL, where there is one."""
    with suppress(FileNotFoundError):
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return {name.lower(): version for name, version in VERSION.findall(run.stdout)}
    return {}
