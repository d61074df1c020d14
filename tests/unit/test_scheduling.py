"""How a batch worker yields: what the kernel says of a process that has asked for it."""

import os
import subprocess
import sys

import pytest

SHOW = """
import os, sys
from batch_worker.scheduling import come_last
come_last(sys.argv[1])
print(os.sched_getscheduler(0) == getattr(os, sys.argv[2]), os.getpriority(os.PRIO_PROCESS, 0))
"""


# Of these tests, and of what they start.
OWN_NICE = os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.parametrize(
    ("scheduling", "policy", "nice"), [("idle", "SCHED_IDLE", OWN_NICE), ("short-turns", "SCHED_OTHER", 19)]
)
def test_the_kernel_knows_that_the_worker_comes_last(scheduling: str, policy: str, nice: int) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", SHOW, scheduling, policy], check=True, capture_output=True, text=True
    ).stdout
    assert shown == f"True {nice}\n"


def test_where_the_kernel_cannot_be_asked_the_worker_goes_on() -> None:
    show = "import platform; platform.machine = lambda: 'pdp11'" + SHOW
    shown = subprocess.run(
        [sys.executable, "-c", show, "short-turns", "SCHED_OTHER"], check=True, capture_output=True, text=True
    ).stdout
    assert "unknown on pdp11" in shown
    assert shown.endswith(f"True {OWN_NICE}\n")
