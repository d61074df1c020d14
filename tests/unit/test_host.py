import re
from pathlib import Path

import pytest

from inference_core import host


def test_a_fingerprint_is_one_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which a shell and Compose leave as it is, whatever a processor is called."""
    monkeypatch.setattr(host, "CPU_INFO", tmp_path / "cpuinfo")
    host.CPU_INFO.write_text(
        "processor : 0\nmodel name\t: Intel(R) Xeon(R) CPU @ 2.20GHz $(x) #\nmodel name\t: other\n"
    )
    assert host.fingerprint().startswith("Intel-R-Xeon-R-CPU-2.20GHz-x_")
    assert re.fullmatch(r"[\w.-]+_\d+-CPUs_\d+-GiB_onnxruntime-[\d.]+", host.fingerprint())
    assert host.fingerprint() == host.fingerprint()


def test_what_makes_another_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another processor, or another number of CPUs that are granted."""
    prints = {host.fingerprint()}
    monkeypatch.setattr(host, "granted_cpus", lambda: 7)
    prints.add(host.fingerprint())
    monkeypatch.setattr(host, "CPU_INFO", tmp_path / "none, as on other systems")
    prints.add(host.fingerprint())
    assert len(prints) == 3


def test_a_description_has_what_a_figure_depends_on() -> None:
    assert re.search(r", \d+ of \d+ CPUs, \d+ GiB, Linux \S+, onnxruntime [\d.]+, tiercel [\d.]+$", host.description())
