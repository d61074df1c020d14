"""How many workers with how many inference threads: never more than the CPUs that this process may use.

ONNX Runtime by itself takes every core of the host in every process, whatever the container was granted; that
oversubscription is the most common cause of slow CPU serving (onnxruntime #3099, #5363, #10273).
"""

import os
from pathlib import Path

import msgspec

from inference_core.settings import Settings, SettingsError

CGROUP = Path("/sys/fs/cgroup")


class ThreadPlan(msgspec.Struct, frozen=True):
    cpus: int
    workers: int
    intra_op_threads: int
    spinning: bool = False

    def __str__(self) -> str:
        words = f"{self.workers} workers x {self.intra_op_threads} inference threads on {self.cpus} CPUs"
        return f"{words}, spinning" if self.spinning else words


def make_plan(settings: Settings, cpus: int) -> ThreadPlan:
    """Fill in what was left at 0; SettingsError if the two together would oversubscribe the CPUs."""
    threads = settings.intra_op_threads or max(1, cpus // (settings.workers or cpus))
    workers = settings.workers or max(1, cpus // threads)
    if workers * threads > cpus and workers * threads > 1:
        raise SettingsError(
            f"TIERCEL_WORKERS x TIERCEL_INTRA_OP_THREADS: expected at most {cpus}, the CPUs granted here, got "
            f"{workers} x {threads} = {workers * threads}: inference threads that share a core delay each other"
        )
    return ThreadPlan(cpus, workers, threads, settings.spinning)


def granted_cpus(cgroup: Path = CGROUP) -> int:
    """Whole CPUs that this process may use at once: its affinity, cut by the cgroup's quota; at least 1."""
    return max(1, min(len(os.sched_getaffinity(0)), int(_quota(cgroup))))


def _quota(cgroup: Path) -> float:
    """CPUs that the cgroup's bandwidth control grants (cgroup v2 `cpu.max`, v1 `cpu.cfs_*`), or infinity's stand-in."""
    unlimited = float(os.cpu_count() or 1)
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return unlimited
    return unlimited if quota in ("max", "-1") else int(quota) / int(period)
