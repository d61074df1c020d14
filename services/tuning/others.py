"""How many CPUs others keep busy: what they take is missing from a trial."""

import os
import resource
import time
from pathlib import Path

STAT = Path("/proc/stat")
TICKS = os.sysconf("SC_CLK_TCK")


class Others:
    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before = _seconds()

    def cpus(self) -> float:
        """On average since this was made; children of ours count as others until they have ended."""
        return max(0.0, _seconds() - self._before) / (time.monotonic() - self._began)


def _seconds() -> float:
    """CPU time of the machine, with what other machines steal from it, less what is ours."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, STAT.read_text().split()[1:9])
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    ours = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return (user + nice + system + irq + softirq + steal) / TICKS - ours
