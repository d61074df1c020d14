import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from observability import metrics
from observability.metrics import (
    DIRECTORY_BYTES,
    MAX_SERIES,
    NOWHERE_SLOTS,
    OTHER,
    SECONDS,
    SLOTS,
    SUFFIX,
    Family,
    Memory,
    Registry,
    Table,
    counter,
    gauge,
    histogram,
    read,
)

Labels = tuple[str, ...]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """With no family in it but that of refusals; what other tests count stays as it is."""
    fresh = Registry()
    monkeypatch.setattr(metrics, "REGISTRY", fresh)
    monkeypatch.setattr(metrics, "SERIES_REFUSED", counter("series_refused_total", "Series that were refused."))
    metrics.SERIES_REFUSED.of()
    return fresh


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, registry: Registry, tmp_path: Path) -> Registry:
    """Both places where a process may count."""
    if request.param == "file":
        registry.attach(tmp_path)
    return registry


@pytest.fixture
def full(place: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """No series has room any more."""
    monkeypatch.setattr(metrics, "DIRECTORY_BYTES", place.memory._used)
    return place


def counted(registry: Registry) -> dict[tuple[str, Labels], list[float]]:
    """What somebody who reads the file finds, without the prefix."""
    series = read(registry.memory.copy())
    return {(entry.family.removeprefix("tiercel_"), entry.labels): list(values) for entry, values in series}


def refused(registry: Registry) -> float:
    return counted(registry)["series_refused_total", ()][0]


def test_a_counter_counts(place: Registry) -> None:
    """By one, or by an amount; each series by itself."""
    shed = counter("shed_total", "Refused.", "reason")
    shed.of("queue").add()
    shed.of("queue").add(2.5)
    shed.of("late").add()
    assert shed.of("queue").get() == 3.5
    assert counted(place)["shed_total", ("queue",)] == [3.5]
    assert counted(place)["shed_total", ("late",)] == [1]


def test_a_gauge_is_set_and_goes_up_and_down(place: Registry) -> None:
    """It is whatever it was told last."""
    depth = gauge("depth", "Waiting.", merge="sum")
    depth.of().set(7)
    depth.of().add(-2)
    assert counted(place)["depth", ()] == [5]


@pytest.mark.parametrize(
    ("value", "bucket"),
    [(-1, 0), (0, 0), (0.1, 0), (0.1000001, 1), (0.2, 1), (0.3, 2), (0.5, 2), (0.5000001, 3), (1e9, 3)],
)
def test_a_bucket_has_what_is_at_most_its_bound(value: float, bucket: int, place: Registry) -> None:
    """`le` is "less or equal"; beyond the last there is one more."""
    seconds = histogram("some_seconds", "Time.", buckets=(0.1, 0.2, 0.5))
    seconds.of().observe(value)
    assert counted(place)["some_seconds", ()] == [float(at == bucket) for at in range(4)] + [value]


def test_a_histogram_adds_up(place: Registry) -> None:
    """A count for each bucket, and the sum."""
    seconds = histogram("some_seconds", "Time.", "route", buckets=(1.0, 2.0))
    for value in (0.5, 1.5, 1.5, 4):
        seconds.of("/v2").observe(value)
    assert counted(place)["some_seconds", ("/v2",)] == [1, 2, 1, 7.5]


def test_a_table_counts_as_its_series_would(place: Registry) -> None:
    """Each counter its amount, each histogram its value, in every row; one that comes again, again, and no other."""
    rows, cpu, other = (counter(name, "Some.", "model") for name in ("rows_total", "cpu_total", "other_total"))
    total, infer = histogram("total_seconds", "Time."), histogram("infer_seconds", "Time.", "model")
    table = Table(counters=2, histograms=2)
    a = table.add([rows.of("a"), cpu.of("a")], [total.of(), infer.of("a")])
    b = table.add([rows.of("b"), None], [total.of(), None])
    other.of("a").add(9)
    amounts = [[4, 0.5], [3, 99], [4, 0.5]]
    times = [[SECONDS[0], SECONDS[-1] + 1], [SECONDS[0], 99], [SECONDS[0], SECONDS[-1] + 1]]
    table.count([a, b, a], np.array(amounts), np.array(times))
    found = counted(place)
    assert [found[name, ("a",)] for name in ("rows_total", "cpu_total", "other_total")] == [[8], [1], [9]]
    assert found["rows_total", ("b",)] == [3]
    assert found["total_seconds", ()] == [3, *[0] * len(SECONDS), pytest.approx(3 * SECONDS[0])]
    assert found["infer_seconds", ("a",)] == [*[0] * len(SECONDS), 2, 2 * (SECONDS[-1] + 1)]
    assert found.keys() == {
        ("series_refused_total", ()),
        ("total_seconds", ()),
        ("infer_seconds", ("a",)),
        ("rows_total", ("b",)),
        *((name, ("a",)) for name in ("rows_total", "cpu_total", "other_total")),
    }


@pytest.mark.parametrize("value", [0.0, *SECONDS, SECONDS[-1] + 1])
def test_a_table_has_the_buckets_of_a_histogram(value: float, place: Registry) -> None:
    """A bound belongs to the bucket that it ends."""
    alone, together = histogram("alone_seconds", "Time."), histogram("together_seconds", "Time.")
    alone.of().observe(value)
    table = Table(counters=1, histograms=1)
    table.count([table.add([None], [together.of()])], np.array([[1.0]]), np.array([[value]]))
    found = counted(place)
    assert found["together_seconds", ()] == found["alone_seconds", ()]


def test_a_file_begins_at_zero(registry: Registry, tmp_path: Path) -> None:
    """What was counted before the fork is the parent's; series are found again, in the file."""
    shed = counter("shed_total", "Refused.", "reason")
    shed.of("queue").add(5)
    registry.attach(tmp_path)
    shed.of("queue").add()
    [file] = tmp_path.glob(f"*{SUFFIX}")
    found = {(entry.family, entry.labels): values for entry, values in read(file.read_bytes())}
    assert found == {("tiercel_series_refused_total", ()): (0,), ("tiercel_shed_total", ("queue",)): (1,)}


def test_a_file_has_all_its_room_from_the_start(registry: Registry, tmp_path: Path) -> None:
    """Where there is none left, a process does not start; it would be killed when it counts."""
    registry.attach(tmp_path)
    [file] = tmp_path.iterdir()
    assert file.stat().st_blocks * 512 >= file.stat().st_size


def test_a_file_of_its_own_for_each_time(registry: Registry, tmp_path: Path) -> None:
    """Also when a process has the number of one that has ended."""
    registry.attach(tmp_path)
    registry.attach(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_as_many_series_as_are_allowed_are_kept(place: Registry) -> None:
    """MAX_SERIES have their own; one more is counted as `other`, which is counted."""
    shed = counter("shed_total", "Refused.", "reason", "who")
    for number in range(MAX_SERIES):
        shed.of("queue", str(number)).add()
    assert refused(place) == 0
    assert len(counted(place)) == 1 + MAX_SERIES
    shed.of("queue", str(MAX_SERIES)).add()
    assert refused(place) == 1
    assert counted(place)["shed_total", (OTHER, OTHER)] == [1]
    assert len(counted(place)) == 1 + MAX_SERIES + 1


def test_beyond_the_bound_nothing_grows(place: Registry) -> None:
    """A thousand more are one series, and those that there are go on."""
    shed = counter("shed_total", "Refused.", "reason")
    for number in range(MAX_SERIES + 1000):
        shed.of(str(number)).add()
    shed.of("0").add()
    found = counted(place)
    assert (found["shed_total", ("0",)], found["shed_total", (OTHER,)]) == ([2], [1000])
    assert refused(place) == 1000
    assert len(found) == len(shed._series) + 1 == MAX_SERIES + 2


def test_the_bound_is_that_of_a_family(place: Registry) -> None:
    """One that has too many takes nothing from the others."""
    many, few = counter("many_total", "Many.", "reason"), counter("few_total", "Few.", "reason")
    for number in range(MAX_SERIES + 1):
        many.of(str(number)).add()
    few.of("late").add()
    assert counted(place)["few_total", ("late",)] == [1]


@pytest.mark.parametrize("name", ["late_total", "late_seconds"])
def test_what_has_no_room_is_counted_nowhere(name: str, full: Registry) -> None:
    """Nothing is raised, and nothing that is counted already is touched; but it is told that it was refused."""
    if name == "late_total":
        counter(name, "Late.", "reason").of("x").add(5)
    else:
        histogram(name, "Late.", "reason").of("x").observe(5)
    assert counted(full) == {("series_refused_total", ()): [1]}


def test_a_row_without_room_is_counted_nowhere(place: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its series that have room are counted; the others touch nobody's numbers."""
    first, seconds = counter("first_total", "There."), histogram("some_seconds", "Time.")
    first.of(), seconds.of()
    monkeypatch.setattr(metrics, "DIRECTORY_BYTES", place.memory._used)
    late, late_seconds = counter("late_total", "Late."), histogram("late_seconds", "Late.")
    table = Table(counters=2, histograms=2)
    rows = [
        table.add([late.of(), first.of()], [late_seconds.of(), seconds.of()]),
        table.add([first.of(), late.of()], [seconds.of(), None]),
    ]
    table.count(rows, np.array([[7.0, 1.0], [1.0, 7.0]]), np.array([[1.5, 2.5], [2.5, 1.5]]))
    found = counted(place)
    assert found.keys() == {("series_refused_total", ()), ("first_total", ()), ("some_seconds", ())}
    assert found["first_total", ()] == [2]
    assert (sum(found["some_seconds", ()][:-1]), found["some_seconds", ()][-1]) == (2, 5)
    assert refused(place) == 2


def test_a_full_memory_takes_to_the_last_number() -> None:
    """As many series as have numbers, and not one more; of a histogram, none unless all of it has room."""
    memory = Memory()
    room = SLOTS - NOWHERE_SLOTS
    assert memory.register("f", ("a",), room - 1) == NOWHERE_SLOTS
    assert memory.register("f", ("b",), 2) is None
    assert memory.register("f", ("c",), 1) == SLOTS - 1
    assert memory.register("f", ("d",), 1) is None


def test_a_full_directory_takes_to_the_last_byte() -> None:
    """An entry that fits exactly is taken; of what does not fit nothing is written."""
    exact, over = Memory(), Memory()
    size = DIRECTORY_BYTES
    while exact.register("f", ("x" * size,), 1) is None:
        size -= 1
    assert exact._used == DIRECTORY_BYTES
    assert exact.register("f", ("",), 1) is None
    assert over.register("f", ("x" * DIRECTORY_BYTES,), 1) is None
    assert list(read(over.copy())) == []


def test_a_histogram_of_any_family_fits_where_nobody_looks() -> None:
    """What is counted nowhere stays within it."""
    assert max(family.slots for family in metrics.REGISTRY.families.values()) <= NOWHERE_SLOTS


def test_threads_that_count_at_once_lose_nothing(place: Registry) -> None:
    """Counters, gauges, histograms and tables; and the series that they make at once is one."""
    threads, times = 8, 2000
    total, busy = counter("some_total", "Some.", "who"), gauge("busy", "Now.", merge="sum")
    seconds = histogram("some_seconds", "Time.")
    table = Table(counters=1, histograms=1)
    row = table.add([total.of("all")], [seconds.of()])
    start = threading.Barrier(threads)

    def work() -> None:
        start.wait()
        for _ in range(times):
            total.of("all").add()
            busy.of().add()
            seconds.of().observe(2)
            table.count([row], np.array([[1.0]]), np.array([[2.0]]))
            busy.of().add(-1)

    _run(threads, work)
    found, most = counted(place), threads * times * 2
    assert found["some_total", ("all",)] == [most]
    assert found["busy", ()] == [0]
    assert (found["some_seconds", ()][SECONDS.index(2.5)], found["some_seconds", ()][-1]) == (most, 2 * most)


def test_threads_that_make_series_at_once_make_each_once(place: Registry) -> None:
    """Also up to the bound."""
    total, start = counter("some_total", "Some.", "who"), threading.Barrier(4)

    def work() -> None:
        start.wait()
        for number in range(MAX_SERIES):
            total.of(str(number)).add()

    _run(4, work)
    found = counted(place)
    assert [found["some_total", (str(number),)] for number in range(MAX_SERIES)] == [[4]] * MAX_SERIES
    assert refused(place) == 0


@pytest.mark.parametrize("labels", [(), ("a",), ("a", "b", "c")])
def test_each_label_has_a_value(labels: Labels, registry: Registry) -> None:
    """Too few and too many are a fault of who counts."""
    shed = counter("shed_total", "Refused.", "reason", "who")
    with pytest.raises(ValueError, match=r"tiercel_shed_total: expected values of \('reason', 'who'\), got "):
        shed.of(*labels)
    assert counted(registry).keys() == {("series_refused_total", ())}


@pytest.mark.parametrize("declare", [counter, histogram, lambda *args: gauge(*args, merge="max")])
def test_a_family_is_declared_once(declare: Any, registry: Registry) -> None:
    """Two of one name would be two metrics to whoever reads them."""
    counter("shed_total", "Refused.")
    with pytest.raises(ValueError, match="tiercel_shed_total: declared twice"):
        declare("shed_total", "Refused.")


def test_the_kind_of_a_family(registry: Registry) -> None:
    """As Prometheus calls it, and how many numbers a series has."""
    families: list[Family[Any]] = [
        counter("a_total", ""),
        gauge("b", "", merge="min"),
        histogram("c_seconds", "", buckets=(1.0, 2.0)),
    ]
    assert [(family.kind, family.merge, family.slots) for family in families] == [
        ("counter", "sum", 1),
        ("gauge", "min", 1),
        ("histogram", "sum", 4),
    ]


def _run(number: int, work: Any) -> None:
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
