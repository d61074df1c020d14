"""The numbers of all processes of a server as one text for Prometheus (text format 0.0.4).

A file whose process has ended, as its lock says, is added to those of the dead, in one file, and goes: so there are as
many files as processes, and what a killed worker counted is not lost.
"""

import fcntl
import os
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from observability.metrics import REGISTRY, SUFFIX, Family, Labels, read

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OF_THE_DEAD, LOCK = "dead.msgpack", "lock"
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Numbers = dict[tuple[str, Labels], list[float]]


class Dead(msgspec.Struct):
    """What the dead have counted; and the files that are in it already, should we have died before they went."""

    numbers: list[tuple[str, Labels, list[float]]] = []
    files: list[str] = []


class Collected(NamedTuple):
    """`pids` of the processes that live."""

    numbers: Numbers
    pids: list[int]


def collect(folder: Path | None) -> Collected:
    """The numbers of all processes that count, or have counted, in `folder`; without one, of this process."""
    if folder is None:
        own: Numbers = {}
        _add(own, read(REGISTRY.memory.copy()), gauges=True)
        return Collected(own, [os.getpid()])
    with (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        dead, bury = _read_dead(folder), []
        numbers: Numbers = {
            (name, labels): values
            for name, labels, values in dead.numbers
            if (family := REGISTRY.families.get(name)) and family.fits(labels, values)
        }
        living: Numbers = {}
        pids = []
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            with suppress(FileNotFoundError), path.open("rb") as file:
                is_dead = _is_free(file.fileno())
                try:
                    series = list(read(file.read()))
                except (ValueError, TypeError, struct.error, msgspec.DecodeError):  # half written on a full disk
                    series = []
                if not is_dead:
                    _add(living, series, gauges=True)
                    pids.append(int(path.name.partition("-")[0]))
                    continue
                if path.name not in dead.files:
                    _add(numbers, series, gauges=False)
                bury.append(path)
        if bury:
            _write_dead(folder, Dead([(*key, values) for key, values in numbers.items()], [path.name for path in bury]))
            for path in bury:
                path.unlink()
    for key, values in numbers.items():
        living[key] = list(map(sum, zip(values, living[key], strict=True))) if key in living else values
    return Collected(living, pids)


def render(numbers: Numbers) -> str:
    by_family: dict[str, list[tuple[Labels, list[float]]]] = {}
    for (name, labels), values in numbers.items():
        by_family.setdefault(name, []).append((labels, values))
    lines: list[str] = []
    for name, family in REGISTRY.families.items():
        if series := by_family.get(name):
            lines += (f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}")
            for labels, values in series:
                _render(lines, family, labels, values)
    return "\n".join(lines) + "\n"


def resident_bytes(pid: int) -> int:
    """The memory of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0


def _is_free(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _add(numbers: Numbers, series: Iterable[Any], *, gauges: bool) -> None:
    for entry, values in series:
        family, key = REGISTRY.families[entry.family], (entry.family, entry.labels)
        if family.kind == "gauge" and not gauges:
            continue
        found = numbers.get(key)
        if found is None:
            numbers[key] = list(values)
        elif family.merge == "sum":
            numbers[key] = [a + b for a, b in zip(found, values, strict=True)]
        else:
            numbers[key] = [(max if family.merge == "max" else min)(found[0], values[0])]


def _read_dead(folder: Path) -> Dead:
    try:
        return msgspec.msgpack.decode((folder / OF_THE_DEAD).read_bytes(), type=Dead)
    except (FileNotFoundError, msgspec.DecodeError):  # the first of all; a power cut's, or another release's
        return Dead()


def _write_dead(folder: Path, dead: Dead) -> None:
    new = folder / f"{OF_THE_DEAD}.new"
    new.write_bytes(msgspec.msgpack.encode(dead))
    new.replace(folder / OF_THE_DEAD)


def _render(lines: list[str], family: Family[Any], labels: Labels, values: list[float]) -> None:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in zip(family.labels, labels, strict=True)]
    if family.kind != "histogram":
        lines.append(f"{family.name}{_braces(pairs)} {_number(values[0])}")
        return
    count = 0.0
    for bound, number in zip((*map(str, family.buckets), "+Inf"), values, strict=False):
        count += number
        limits = _braces([*pairs, f'le="{bound}"'])
        lines.append(f"{family.name}_bucket{limits} {_number(count)}")
    lines.append(f"{family.name}_sum{_braces(pairs)} {_number(values[-1])}")
    lines.append(f"{family.name}_count{_braces(pairs)} {_number(count)}")


def _braces(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def totals(numbers: Numbers, family: Family[Any], **labels: str) -> list[float]:
    """The sum of the series of `family` whose labels have these values."""
    return _sum(family, [values for _, values in _chosen(numbers, family, labels)])


def by_label(numbers: Numbers, family: Family[Any], name: str, **labels: str) -> dict[str, float]:
    """The same of a counter, for each value of the label `name`."""
    at, found = family.labels.index(name), defaultdict[str, float](float)
    for values_of, [value] in _chosen(numbers, family, labels):
        found[values_of[at]] += value
    return found


def put(numbers: Numbers, family: Family[Any], value: float, *labels: str) -> None:
    """A number that is known of the whole server."""
    numbers[family.name, labels] = [float(value)]


def _chosen(numbers: Numbers, family: Family[Any], labels: Mapping[str, str]) -> Iterator[tuple[Labels, list[float]]]:
    wanted = [(family.labels.index(name), value) for name, value in labels.items()]
    for (name, values_of), values in numbers.items():
        if name == family.name and all(values_of[at] == value for at, value in wanted):
            yield values_of, values


def _sum(family: Family[Any], series: Iterable[list[float]]) -> list[float]:
    return [sum(column) for column in zip([0.0] * family.slots, *series, strict=True)]
