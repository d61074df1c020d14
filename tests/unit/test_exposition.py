"""The numbers of processes that live, and of some that were killed: each is a real one, in a folder of the test's."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from observability import families
from observability.exposition import (
    OF_THE_DEAD,
    Dead,
    Numbers,
    by_label,
    collect,
    put,
    render,
    resident_bytes,
    totals,
)
from observability.metrics import REGISTRY, SIZE, SUFFIX, VALUES_AT

# Does what it is told, a line at a time.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from observability import exposition, families
from observability.metrics import REGISTRY
folder = Path(sys.argv[1])
REGISTRY.attach(folder)
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Child:
    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self._answers("ready")

    def does(self, *lines: str) -> None:
        for line in lines:
            self._say(line)
            self._answers("done")

    def dies(self, line: str) -> None:
        """Doing that."""
        self._say(line)
        assert self._process.wait(20) == -signal.SIGKILL

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(20)

    def close(self) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _answers(self, expected: str) -> None:
        assert self._process.stdout
        assert self._process.stdout.readline() == f"{expected}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def child(folder: Path) -> Iterator[Callable[[], Child]]:
    """Start a process that counts in the folder."""
    children: list[Child] = []

    def start() -> Child:
        children.append(Child(folder))
        return children[-1]

    yield start
    for each in children:
        each.close()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(f"*{SUFFIX}"))


def shed(folder: Path) -> float:
    return totals(collect(folder).numbers, families.SHED)[0]


def test_what_a_killed_process_has_counted_is_kept(folder: Path, child: Callable[[], Child]) -> None:
    """Counters and histograms, each number once, however often somebody asks; and its file goes."""
    victim = child()
    victim.does("families.SHED.of('queue').add(3)", "families.QUEUE_SECONDS.of().observe(0.3)")
    assert collect(folder).pids == [victim.pid]
    victim.kill()
    for _ in range(3):
        numbers, pids = collect(folder)
        assert pids == []
        assert by_label(numbers, families.SHED, "reason") == {"queue": 3}
        assert (sum(totals(numbers, families.QUEUE_SECONDS)[:-1]), totals(numbers, families.QUEUE_SECONDS)[-1]) == (
            1,
            0.3,
        )
        assert files(folder) == []


def test_gauges_of_the_dead_go(folder: Path, child: Callable[[], Child]) -> None:
    """A request that was served by a process that was killed is in flight no more."""
    victim, other = child(), child()
    for each in (victim, other):
        each.does("families.IN_FLIGHT.of().add()", "families.INFERENCE_THREADS.of().set(2)")
    assert totals(collect(folder).numbers, families.IN_FLIGHT) == [2]
    victim.kill()
    assert totals(collect(folder).numbers, families.IN_FLIGHT) == [1]
    other.kill()
    assert not [key for key in collect(folder).numbers if REGISTRY.families[key[0]].kind == "gauge"]


def test_the_living_become_one(folder: Path, child: Callable[[], Child]) -> None:
    """Counters, histograms and what is in flight are added up; of other gauges the most, or the least, is told."""
    for number in (3, 1, 2):
        child().does(
            f"families.SHED.of('queue').add({number})",
            f"families.IN_FLIGHT.of().set({number})",
            f"families.INFERENCE_THREADS.of().set({number})",
            f"families.REDIS_AVAILABLE.of('cache').set({number})",
            f"families.QUEUE_SECONDS.of().observe({number})",
        )
    numbers, pids = collect(folder)
    assert len(set(pids)) == 3
    assert totals(numbers, families.SHED) == [6]
    assert totals(numbers, families.IN_FLIGHT) == [6]
    assert totals(numbers, families.INFERENCE_THREADS) == [3]
    assert totals(numbers, families.REDIS_AVAILABLE) == [1]
    assert (sum(totals(numbers, families.QUEUE_SECONDS)[:-1]), totals(numbers, families.QUEUE_SECONDS)[-1]) == (3, 6)


def test_the_dead_and_the_living_are_added(folder: Path, child: Callable[[], Child]) -> None:
    """Of one series, and of those that only one of them has; no number goes down when its process does."""
    first, second = child(), child()
    first.does("families.SHED.of('queue').add(1)", "families.SHED.of('aside').add(2)")
    second.does("families.SHED.of('queue').add(4)", "families.SHED.of('deadline').add(8)")
    expected = {"queue": 5, "aside": 2, "deadline": 8}
    assert by_label(collect(folder).numbers, families.SHED, "reason") == expected
    for each in (first, second):
        each.kill()
        assert by_label(collect(folder).numbers, families.SHED, "reason") == expected


def test_a_process_that_lives_is_not_taken_for_dead(folder: Path, child: Callable[[], Child]) -> None:
    """Not by others, and not by itself: its file stays, and it goes on counting in it."""
    asking = child()
    asking.does("families.SHED.of('queue').add()", "exposition.collect(folder)")
    collect(folder)
    asking.does("families.SHED.of('queue').add()", "exposition.collect(folder)")
    assert shed(folder) == 2
    assert len(files(folder)) == 1


# Of a burial: what is done last before the kill.
STOPS = {
    "before the dead are written": "exposition._write_dead = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "before the new file replaces the old": "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "before a file goes": "Path.unlink = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "after the first has gone": (
        "Path.unlink = lambda path, real=Path.unlink: (real(path), os.kill(os.getpid(), signal.SIGKILL))"
    ),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_who_is_killed_at_a_burial_counts_nothing_twice(stop: str, folder: Path, child: Callable[[], Child]) -> None:
    """Nor does it lose anything, whenever it is killed."""
    victims, digger = [child(), child()], child()
    for each in victims:
        each.does("families.SHED.of('queue').add(3)")
        each.kill()
    digger.does(stop)
    digger.dies("exposition.collect(folder)")
    late = child()
    late.does("families.SHED.of('queue').add(1)")
    late.kill()
    for _ in range(3):
        assert shed(folder) == 7
    assert files(folder) == []


def test_a_hundred_processes_leave_no_file_each(folder: Path, child: Callable[[], Child]) -> None:
    """There are as many files as processes that live, and nobody's numbers are lost."""
    parent, most = child(), 0
    parent.does(
        "def spawn(): REGISTRY.attach(folder); families.SHED.of('queue').add(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    for number in range(100):
        # It must not keep its parent's file locked once that has ended, nor the parent its own.
        parent.does("pid = os.fork(); pid or spawn(); os.waitpid(pid, 0)")
        most = max(most, len(list(folder.iterdir())))
        assert shed(folder) == number + 1
    # Its own, that of the last, the lock, and those of the dead.
    assert most <= 4
    assert len(files(folder)) == 1


def test_those_who_ask_at_once_count_nothing_twice(folder: Path, child: Callable[[], Child]) -> None:
    """One buries after the other."""
    asking = [child() for _ in range(3)]
    for _ in range(3):
        victim = child()
        victim.does("families.SHED.of('queue').add()")
        victim.kill()
    for each in asking:
        each._say("exposition.collect(folder)")
    for each in asking:
        each._answers("done")
    assert shed(folder) == 3


SPOILS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in the size": lambda data: data[:3],
    "cut in the directory": lambda data: data[:40],
    "cut before the numbers": lambda data: data[:VALUES_AT],
    "cut within a number": lambda data: data[: VALUES_AT + 3],
    "cut between numbers": lambda data: data[: VALUES_AT + 8 * 66],
    "text": lambda data: b"no numbers at all\n" * 1000,
    "noise": lambda data: bytes(range(256)) * (len(data) // 256),
    "a directory without end": lambda data: SIZE.pack(1 << 60) + data[SIZE.size :],
    "a directory of less than nothing": lambda data: SIZE.pack(-1) + data[SIZE.size :],
    "an entry without end": lambda data: data[: SIZE.size] + SIZE.pack(1 << 60) + data[2 * SIZE.size :],
    "an entry of less than nothing": lambda data: data[: SIZE.size] + SIZE.pack(-SIZE.size) + data[2 * SIZE.size :],
    "an entry that is none": lambda data: data.replace(b"tiercel_series", b"\xff\xff\xffcel_series"),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_spoilt_file_does_not_break_the_exposition(
    spoil: Callable[[bytes], bytes], folder: Path, child: Callable[[], Child]
) -> None:
    """What it had is lost, what others have is told, and it goes."""
    victim, other = child(), child()
    [name] = [name for name in files(folder) if name.startswith(f"{victim.pid}-")]
    victim.does("families.QUEUE_SECONDS.of().observe(2)")
    other.does("families.SHED.of('queue').add(3)")
    victim.kill()
    (folder / name).write_bytes(spoil((folder / name).read_bytes()))
    for _ in range(2):
        numbers = collect(folder).numbers
        assert by_label(numbers, families.SHED, "reason") == {"queue": 3}
        assert "tiercel_shed_total" in render(numbers)
    assert len(files(folder)) == 1


def test_a_spoilt_file_of_one_that_lives_does_not_break_the_exposition(
    folder: Path, child: Callable[[], Child]
) -> None:
    """It is not taken away from it."""
    victim = child()
    path = folder / files(folder)[0]
    with path.open("r+b") as file:
        file.write(SIZE.pack(1 << 60))
    assert collect(folder).pids == [victim.pid]
    assert path.exists()


DEAD: dict[str, bytes] = {
    "empty": b"",
    "noise": bytes(range(256)),
    "cut short": msgspec.msgpack.encode(Dead([("tiercel_shed_total", ("queue",), [5.0])], ["a"]))[:-3],
    "of other types": msgspec.msgpack.encode({"numbers": [["tiercel_shed_total", "queue", 5]]}),
    "with other labels": msgspec.msgpack.encode(Dead([("tiercel_shed_total", ("a", "b"), [5.0])])),
    "with other buckets": msgspec.msgpack.encode(Dead([("tiercel_queue_seconds", (), [5.0])])),
    "with a family that is gone": msgspec.msgpack.encode(Dead([("tiercel_gone_total", (), [5.0])])),
}


@pytest.mark.parametrize("written", DEAD.values(), ids=DEAD)
def test_spoilt_numbers_of_the_dead_do_not_break_the_exposition(
    written: bytes, folder: Path, child: Callable[[], Child]
) -> None:
    """Nor those of another release, whose folder this was."""
    (folder / OF_THE_DEAD).write_bytes(written)
    victim, other = child(), child()
    for each in (victim, other):
        each.does("families.SHED.of('queue').add()", "families.QUEUE_SECONDS.of().observe(0.3)")
    victim.kill()
    for _ in range(2):
        numbers = collect(folder).numbers
        assert by_label(numbers, families.SHED, "reason") == {"queue": 2}
        assert totals(numbers, families.QUEUE_SECONDS)[-1] == 0.6
        assert "tiercel_queue_seconds_count 2" in render(numbers)


def test_other_files_in_the_folder_are_let_be(folder: Path, child: Callable[[], Child]) -> None:
    """Only what ends as ours do is read, and goes."""
    (folder / "notes.txt").write_text("not ours")
    child().does("families.SHED.of('queue').add()")
    assert shed(folder) == 1
    assert (folder / "notes.txt").exists()


def test_without_a_folder_a_process_tells_of_itself() -> None:
    """As tests do, and a server of one process might."""
    numbers, pids = collect(None)
    assert pids == [os.getpid()]
    assert totals(numbers, families.SHED) == totals(collect(None).numbers, families.SHED)


def test_the_text() -> None:
    """Prometheus, text format 0.0.4: help, type, then the series; buckets add up and end with +Inf."""
    numbers: Numbers = {}
    put(numbers, families.IN_FLIGHT, 2)
    numbers["tiercel_shed_total", ("queue",)] = [1.5]
    numbers["tiercel_queue_seconds", ()] = [1.0, *[0.0] * 9, 2.0, *[0.0] * 4, 1.0, 9.25]
    text = render(numbers)
    assert text.startswith("# HELP tiercel_queue_seconds From a request's arrival at NGINX")
    assert text.endswith("\n")
    lines = [line for line in text.splitlines() if not line.startswith("# HELP")]
    assert lines == [
        "# TYPE tiercel_queue_seconds histogram",
        'tiercel_queue_seconds_bucket{le="0.0001"} 1',
        *(f'tiercel_queue_seconds_bucket{{le="{bound}"}} 1' for bound in families.QUEUE_SECONDS.buckets[1:10]),
        *(f'tiercel_queue_seconds_bucket{{le="{bound}"}} 3' for bound in families.QUEUE_SECONDS.buckets[10:]),
        'tiercel_queue_seconds_bucket{le="+Inf"} 4',
        "tiercel_queue_seconds_sum 9.25",
        "tiercel_queue_seconds_count 4",
        "# TYPE tiercel_requests_in_flight gauge",
        "tiercel_requests_in_flight 2",
        "# TYPE tiercel_shed_total counter",
        'tiercel_shed_total{reason="queue"} 1.5',
    ]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ('say "no"', r"say \"no\""),
        ("back\\slash", r"back\\slash"),
        ("two\nlines", r"two\nlines"),
        ('\\"\n', r"\\\"\n"),
        ("caf\u00e9 \N{SNOWMAN}", "caf\u00e9 \N{SNOWMAN}"),
        ('"} 1\ntiercel_shed_total{reason="', r"\"} 1\ntiercel_shed_total{reason=\""),
    ],
)
def test_values_of_labels_are_escaped(value: str, written: str) -> None:
    """What is in one ends neither it nor its line."""
    text = render({("tiercel_shed_total", (value,)): [1.0]})
    assert text.splitlines()[2:] == [f'tiercel_shed_total{{reason="{written}"}} 1']


@pytest.mark.parametrize(
    ("value", "written"), [(0.0, "0"), (1e15, "1000000000000000"), (0.1, "0.1"), (1e-7, "1e-07"), (-2.5, "-2.5")]
)
def test_numbers_are_written_whole(value: float, written: str) -> None:
    """No digit is lost, and counts are counts."""
    assert render({("tiercel_shed_total", ("a",)): [value]}).splitlines()[2].endswith(f" {written}")


def test_prometheus_can_read_it(folder: Path, child: Callable[[], Child]) -> None:
    """Every family there is, with labels of the worst kind: promtool finds nothing wrong with it."""
    child().does(
        "nasty = 'a\\\\b\"c\\nd}{=,\\u2603'",
        "[f.of(*[nasty] * len(f.labels)) for f in REGISTRY.families.values()]",
        "[f.of(*['x'] * len(f.labels)).observe(0.3) for f in REGISTRY.families.values() if f.kind == 'histogram']",
    )
    text = render(collect(folder).numbers)
    assert set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) == {name for name in REGISTRY.families if name in text}
    assert set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) >= {
        family.name for family in vars(families).values() if hasattr(family, "slots") and hasattr(family, "help")
    }
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_sums_are_of_the_series_that_were_asked_for() -> None:
    """By any of the labels; of nothing, zeros."""
    numbers: Numbers = {}
    for model, version, status, count in (("a", "1", "200", 1), ("a", "2", "200", 2), ("b", "1", "500", 4)):
        put(numbers, families.REQUESTS, count, "/r", "POST", model, version, status)
    assert totals(numbers, families.REQUESTS) == [7]
    assert totals(numbers, families.REQUESTS, model="a") == [3]
    assert totals(numbers, families.REQUESTS, model="a", version="2") == [2]
    assert totals(numbers, families.REQUESTS, model="c") == [0]
    assert by_label(numbers, families.REQUESTS, "status") == {"200": 3, "500": 4}
    assert by_label(numbers, families.REQUESTS, "version", model="a") == {"1": 1, "2": 2}
    assert totals(numbers, families.QUEUE_SECONDS) == [0] * families.QUEUE_SECONDS.slots


def test_the_memory_of_a_process() -> None:
    """Of one that lives; of one that has ended, none."""
    assert resident_bytes(os.getpid()) > 1 << 20
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait(20)
    assert resident_bytes(ended.pid) == 0
