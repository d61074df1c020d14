"""How a batch worker yields the CPUs to those who wait for an answer (Linux, sched(7)).

Within one group of tasks SCHED_IDLE is best: who wakes up gets the CPU at once. Between groups, as containers are, it
counts for nothing: a group keeps its turn of about 3 ms, however small its share. From Linux 6.12 on a task may ask for
shorter turns (sched_setattr(2), `sched_runtime`), and then its group has them as well.
"""

import ctypes
import os
import platform
import struct

import structlog

# Of sched_setattr(2), by machine.
SYSTEM_CALLS = {"x86_64": 314, "aarch64": 274}
# struct sched_attr: size, policy, flags, nice, priority, and nanoseconds of runtime, deadline and period.
SCHED_ATTR = struct.Struct("IIQiIQQQ")
LEAST_NICE = 19
# The shortest that the kernel takes.
TURN_NANOSECONDS = 100_000

log = structlog.get_logger()


def come_last(scheduling: str) -> None:
    """For this thread and those that it starts from now on."""
    if scheduling == "idle":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        return
    number = SYSTEM_CALLS.get(platform.machine())
    attributes = SCHED_ATTR.pack(SCHED_ATTR.size, os.SCHED_OTHER, 0, LEAST_NICE, 0, TURN_NANOSECONDS, 0, 0)
    if number is None or ctypes.CDLL(None, use_errno=True).syscall(number, 0, attributes, 0):
        reason = os.strerror(ctypes.get_errno()) if number else f"unknown on {platform.machine()}"
        log.warning("turns stay as long as others'", reason=reason)
