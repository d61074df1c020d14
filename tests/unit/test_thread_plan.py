import os
from pathlib import Path

import pytest

from inference_core.settings import Settings, SettingsError
from inference_core.thread_plan import granted_cpus, make_plan

MACHINE_CPUS = 16


@pytest.fixture
def big_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 16 CPUs, all of them open to this process."""
    monkeypatch.setattr(os, "cpu_count", lambda: MACHINE_CPUS)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(MACHINE_CPUS)))


def make_cgroup(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.usefixtures("big_machine")
@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        pytest.param({"cpu.max": "400000 100000\n"}, 4, id="v2"),
        pytest.param({"cpu.max": "max 100000\n"}, MACHINE_CPUS, id="v2, no quota"),
        pytest.param({"cpu.max": "50000 100000\n"}, 1, id="v2, half a CPU"),
        pytest.param({"cpu.max": "250000 100000\n"}, 2, id="v2, two and a half"),
        pytest.param({"cpu.max": "3200000 100000\n"}, MACHINE_CPUS, id="v2, more than there is"),
        pytest.param({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3, id="v1"),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, MACHINE_CPUS, id="v1, no quota"
        ),
        pytest.param({}, MACHINE_CPUS, id="no cgroup"),
    ],
)
def test_the_quota_of_the_cgroup_is_kept(files: dict[str, str], cpus: int, tmp_path: Path) -> None:
    """Whole CPUs of the cgroup's quota, rounded down, at least 1."""
    assert granted_cpus(make_cgroup(tmp_path, files)) == cpus


def test_affinity_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CPUs that the process is not allowed on do not count, however large the quota."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert granted_cpus(make_cgroup(tmp_path, {"cpu.max": "800000 100000"})) == 2


@pytest.mark.parametrize(
    ("workers", "threads", "cpus", "planned"),
    [
        (0, 0, 4, (4, 1)),
        (0, 0, 1, (1, 1)),
        (2, 0, 4, (2, 2)),
        (3, 0, 4, (3, 1)),
        (0, 2, 4, (2, 2)),
        (0, 3, 4, (1, 3)),
        (2, 2, 4, (2, 2)),
        (1, 1, 1, (1, 1)),
    ],
)
def test_zeros_are_filled_in(workers: int, threads: int, cpus: int, planned: tuple[int, int]) -> None:
    """What is left at 0 is chosen so that the CPUs are used and not shared."""
    plan = make_plan(Settings(workers=workers, intra_op_threads=threads), cpus)
    assert (plan.workers, plan.intra_op_threads, plan.cpus) == (*planned, cpus)


@pytest.mark.parametrize(
    ("workers", "threads", "cpus", "product"),
    [(5, 0, 4, "5 x 1 = 5"), (0, 5, 4, "1 x 5 = 5"), (2, 3, 4, "2 x 3 = 6"), (2, 0, 1, "2 x 1 = 2")],
)
def test_oversubscription_is_refused(workers: int, threads: int, cpus: int, product: str) -> None:
    """More threads than CPUs are refused, with both variables, both numbers and the reason."""
    with pytest.raises(SettingsError) as refused:
        make_plan(Settings(workers=workers, intra_op_threads=threads), cpus)
    message = str(refused.value)
    assert message.startswith(f"TIERCEL_WORKERS x TIERCEL_INTRA_OP_THREADS: expected at most {cpus}, ")
    assert f"got {product}: inference threads that share a core delay each other" in message


def test_a_plan_reads_as_a_sentence() -> None:
    """The plan is what the start-up log says."""
    assert str(make_plan(Settings(), 2)) == "2 workers x 1 inference threads on 2 CPUs"
    spinning = make_plan(Settings(workers=1, spinning=True), 2)
    assert str(spinning) == "1 workers x 2 inference threads on 2 CPUs, spinning"
