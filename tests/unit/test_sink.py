import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_api.observation.sink import PIPE_BYTES, Sink
from observability.families import LINES_DROPPED

ROOM = PIPE_BYTES // 2


class Pipe:
    """A real one."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        self.file = open(writing, "wb")  # noqa: SIM115, PTH123  # closed by its fixture; there is no path
        self.sink = Sink(self.file)
        self._dropped = LINES_DROPPED.of().get()

    def read(self, size: int) -> int:
        """How many bytes came of so many."""
        return len(os.read(self.reading, size))

    def dropped(self) -> float:
        return LINES_DROPPED.of().get() - self._dropped


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.file.close()
    os.close(pipe.reading)


def test_a_pipe_is_made_wider(pipe: Pipe) -> None:
    """To what any user may have."""
    assert fcntl.fcntl(pipe.reading, fcntl.F_GETPIPE_SZ) == PIPE_BYTES


def test_half_a_pipe_is_filled_and_no_more(pipe: Pipe) -> None:
    """Nobody reads: what is beyond the bound is dropped, all of it, and counted line by line."""
    pipe.sink.write(b"x" * (ROOM - 10), 64)
    pipe.sink.write(b"y" * 11, 7)
    assert pipe.dropped() == 7
    pipe.sink.write(b"z" * 10, 1)
    assert pipe.dropped() == 7
    assert pipe.read(PIPE_BYTES) == ROOM


def test_once_somebody_reads_it_goes_on(pipe: Pipe) -> None:
    """With what comes then."""
    pipe.sink.write(b"x" * ROOM, 1)
    pipe.sink.write(b"y", 1)
    assert pipe.dropped() == 1
    assert pipe.read(1) == 1
    pipe.sink.write(b"z", 1)
    assert pipe.dropped() == 1
    assert os.read(pipe.reading, PIPE_BYTES)[-1:] == b"z"


def test_the_room_is_that_of_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may have no wider one has half of what there is."""
    reading, writing = os.pipe()
    narrow = fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
    monkeypatch.setattr("inference_api.observation.sink.PIPE_BYTES", 1 << 40)  # more than anybody may
    before = LINES_DROPPED.of().get()
    with os.fdopen(writing, "wb") as file, os.fdopen(reading, "rb"):
        sink = Sink(file)
        sink.write(b"x" * (narrow // 2), 1)
        sink.write(b"y", 1)
    assert LINES_DROPPED.of().get() - before == 1


def test_a_file_takes_all(tmp_path: Path) -> None:
    """At once, however much it is."""
    before = LINES_DROPPED.of().get()
    with (tmp_path / "log").open("wb") as file:
        sink = Sink(file)
        for _ in range(3):
            sink.write(b"x" * ROOM, 1)
        assert (tmp_path / "log").stat().st_size == 3 * ROOM
    assert LINES_DROPPED.of().get() == before
