"""Which machine this is, as far as that decides what is fast on it."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

from inference_core.thread_plan import granted_cpus

CPU_INFO = Path("/proc/cpuinfo")


def fingerprint() -> str:
    """In one word, the same for all machines on which settings that were tuned on one are good."""
    parts = (_processor(), f"{granted_cpus()} CPUs", _memory(), f"onnxruntime {version('onnxruntime')}")
    return "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in parts)


def description() -> str:
    """The same for people, with what else they may want to know of a measurement."""
    programs = (f"{name} {version(name)}" for name in ("onnxruntime", "tiercel"))
    cpus = f"{granted_cpus()} of {os.cpu_count()} CPUs"
    return ", ".join((_processor(), cpus, _memory(), f"{platform.system()} {platform.release()}", *programs))


def _processor() -> str:
    """Its name, which only x86 tells, or its architecture."""
    text = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _memory() -> str:
    return f"{round(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30)} GiB"
