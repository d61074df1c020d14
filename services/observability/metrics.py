"""Counting and measuring, right with many processes and when they are killed: what a family and a series are.

Each process keeps its numbers in a file that is mapped into its memory (`attach`): to count is one addition, and the
number outlives the process. `exposition` adds up the files of all processes of a server.

NOTE: prometheus_client does the same for 2 us a number, which a small model has no time for, keeps the files of the
dead for ever, and reads a server's in seconds after some thousand of them (its issues 204 and 568).
"""

import bisect
import fcntl
import mmap
import os
import secrets
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

# A process's file: the size of the directory in use, the directory, and then the numbers (float64). In the directory,
# for each series, the size of its entry and the entry in MessagePack.
SIZE = struct.Struct("=q")
DIRECTORY_BYTES, SLOTS = 512 << 10, 32 << 10
VALUES_AT = SIZE.size + DIRECTORY_BYTES
FILE_BYTES = VALUES_AT + 8 * SLOTS
SUFFIX = ".numbers"
# The first numbers are nobody's: what has no room is counted there, for nobody to see.
NOWHERE, NOWHERE_SLOTS = 0, 64
# SECURITY: series of one family. What is beyond is counted under OTHER.
MAX_SERIES = 400
OTHER = "other"
# Seconds, close where objectives are.
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

# How the numbers of several processes become one; of gauges, those of processes that live.
Merge = Literal["sum", "max", "min"]
Labels = tuple[str, ...]
Numbers = NDArray[np.float64]

BUCKETS = np.array(SECONDS)


class Entry(msgspec.Struct, array_like=True):
    """A series in a directory; `at` is the place of its first number."""

    family: str
    labels: Labels
    at: int


class Counter:
    """A series of one number, also of a gauge."""

    __slots__ = ("at", "lock", "values")

    def __init__(self, memory: "Memory", at: int) -> None:
        self.values = memory.values
        self.lock = memory.lock
        self.at = at

    def add(self, amount: float = 1.0) -> None:
        with self.lock:
            self.values[self.at] += amount

    def set(self, value: float) -> None:
        self.values[self.at] = value

    def get(self) -> float:
        return self.values[self.at]


class Histogram:
    """A series of a count for each bucket, one for what is beyond, and the sum."""

    __slots__ = ("at", "buckets", "lock", "sum_at", "values")

    def __init__(self, memory: "Memory", at: int, buckets: tuple[float, ...]) -> None:
        self.values = memory.values
        self.lock = memory.lock
        self.at = at
        self.buckets = buckets
        self.sum_at = at + len(buckets) + 1

    def observe(self, value: float) -> None:
        at = self.at + bisect.bisect_left(self.buckets, value)
        with self.lock:
            self.values[at] += 1.0
            self.values[self.sum_at] += value


class Table:
    """Series that are counted in together, as rows of a table; histograms must have the buckets SECONDS.

    PERF: numpy counts in ten series for each of 32 requests in the time in which Python does so for five.
    """

    def __init__(self, counters: int, histograms: int) -> None:
        self._memory = REGISTRY.memory
        self._counters = np.empty((0, counters), np.intp)
        self._histograms = np.empty((0, histograms), np.intp)
        self._sums = np.empty((0, histograms), np.intp)

    def add(self, counters: Sequence[Counter | None], histograms: Sequence[Histogram | None]) -> int:
        """The number of a new row; None stands for a series that there is not."""
        at = [counter.at if counter else NOWHERE for counter in counters]
        self._counters = np.vstack((self._counters, at))
        at = [histogram.at if histogram else NOWHERE for histogram in histograms]
        self._histograms = np.vstack((self._histograms, at))
        at = [histogram.sum_at if histogram else NOWHERE for histogram in histograms]
        self._sums = np.vstack((self._sums, at))
        return len(self._counters) - 1

    def count(self, rows: Sequence[int], amounts: Numbers, measured: Numbers) -> None:
        """`amounts`: for each row one for each counter; `measured`: one for each histogram. A row may come again."""
        at, numbers = np.array(rows), self._memory.array
        buckets = np.searchsorted(BUCKETS, measured) + self._histograms[at]
        with self._memory.lock:
            np.add.at(numbers, self._counters[at], amounts)
            np.add.at(numbers, buckets, 1.0)
            np.add.at(numbers, self._sums[at], measured)


class Memory:
    """The numbers of this process: in a file of `folder`, or in its own memory until there is one."""

    def __init__(self, folder: Path | None = None) -> None:
        self.lock = threading.Lock()
        self._buffer = mmap.mmap(-1, FILE_BYTES) if folder is None else _create(folder)
        self.values = memoryview(self._buffer)[VALUES_AT:].cast("d")
        self.array: Numbers = np.frombuffer(self._buffer, np.float64, SLOTS, VALUES_AT)  # the same
        self._used = 0
        self._slots = NOWHERE_SLOTS

    def copy(self) -> bytes:
        return self._buffer[:]

    def register(self, family: str, labels: Labels, slots: int) -> int | None:
        """The place of a new series; None if there is no room."""
        entry = msgspec.msgpack.encode(Entry(family, labels, self._slots))
        end = self._used + SIZE.size + len(entry)
        if end > DIRECTORY_BYTES or self._slots + slots > SLOTS:
            return None
        at = self._slots
        start = SIZE.size + self._used
        self._buffer[start : SIZE.size + end] = SIZE.pack(len(entry)) + entry
        self._slots += slots
        self._used = end
        SIZE.pack_into(self._buffer, 0, end)  # last: nobody reads half an entry
        return at


class Registry:
    """All families, and where this process counts."""

    def __init__(self) -> None:
        self.families: dict[str, Family[Any]] = {}
        self.lock = threading.RLock()
        self.memory = Memory()

    def attach(self, folder: Path) -> None:
        """From now on count in a file of `folder`, from zero: call it in each process, after the fork."""
        with self.lock:
            self.memory = Memory(folder)
            for family in self.families.values():
                family.forget()
            SERIES_REFUSED.of()  # at once: it must have a place when there is none


Series = TypeVar("Series", Counter, Histogram)


class Family(Generic[Series]):
    """A metric: `labels` are the names of its labels; `merge` is for gauges."""

    def __init__(
        self, name: str, text: str, labels: Labels = (), buckets: tuple[float, ...] = (), merge: Merge | None = None
    ) -> None:
        self.name: str = f"tiercel_{name}"
        self.help: str = text
        self.labels: Labels = labels
        self.buckets: tuple[float, ...] = buckets
        self.merge: Merge = merge or "sum"
        self.kind: str = "histogram" if buckets else "gauge" if merge else "counter"
        self.slots: int = len(buckets) + 2 if buckets else 1
        self._series: dict[Labels, Series] = {}
        if self.name in REGISTRY.families:
            raise ValueError(f"{self.name}: declared twice")
        REGISTRY.families[self.name] = self

    def of(self, *labels: str) -> Series:
        """The series with these values of the labels, in their order."""
        found = self._series.get(labels)
        return self._new(labels) if found is None else found

    def forget(self) -> None:
        self._series = {}

    def fits(self, labels: Labels, values: Sequence[float]) -> bool:
        """Whether that can be a series of this family; else it was cut short, or is another release's."""
        return len(labels) == len(self.labels) and len(values) == self.slots

    def _new(self, labels: Labels) -> Series:
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name}: expected values of {self.labels}, got {labels}")
        with REGISTRY.lock:
            if found := self._series.get(labels):  # another thread was quicker
                return found
            others = (OTHER,) * len(labels)
            if len(self._series) < MAX_SERIES or labels == others:
                return self._register(labels)
            SERIES_REFUSED.of().add()
            return self._series.get(others) or self._register(others)

    def _register(self, labels: Labels) -> Series:
        memory = REGISTRY.memory
        at = memory.register(self.name, labels, self.slots)
        if at is None:
            SERIES_REFUSED.of().add()
            at = NOWHERE
        series = Histogram(memory, at, self.buckets) if self.buckets else Counter(memory, at)
        self._series[labels] = cast("Series", series)
        return self._series[labels]


REGISTRY = Registry()


def counter(name: str, text: str, *labels: str) -> Family[Counter]:
    return Family(name, text, labels)


def gauge(name: str, text: str, *labels: str, merge: Merge) -> Family[Counter]:
    return Family(name, text, labels, merge=merge)


def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Family[Histogram]:
    return Family(name, text, labels, buckets)


SERIES_REFUSED = counter("series_dropped_total", "Series that are counted as other, as there are too many.")
SERIES_REFUSED.of()


def _create(folder: Path) -> mmap.mmap:
    """A file of this process, which holds its lock for as long as it lives."""
    name = f"{os.getpid()}-{secrets.token_hex(4)}"
    with (folder / name).open("xb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.dup(file.fileno())  # which keeps it locked
        os.posix_fallocate(file.fileno(), 0, FILE_BYTES)  # a full disk is an error now, and no SIGBUS later
        (folder / name).rename(folder / f"{name}{SUFFIX}")  # unlocked, it would be taken for a dead one's
        return mmap.mmap(file.fileno(), FILE_BYTES)


def read(data: bytes) -> Iterator[tuple[Entry, tuple[float, ...]]]:
    """The series in a process's file, those of families that there are."""
    values = memoryview(data)[VALUES_AT:].cast("d")
    at, end = SIZE.size, SIZE.size + SIZE.unpack_from(data)[0]
    while at < end:
        (size,) = SIZE.unpack_from(data, at)
        entry = msgspec.msgpack.decode(data[at + SIZE.size : at + SIZE.size + size], type=Entry)
        at += SIZE.size + size
        family = REGISTRY.families.get(entry.family)
        if family and family.fits(entry.labels, numbers := tuple(values[entry.at : entry.at + family.slots])):
            yield entry, numbers
