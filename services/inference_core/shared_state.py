"""What all workers have agreed to serve, in a folder that they share: plain files, file locks, no server.

    desired.json     the versions to serve, with a generation that grows by one at each change
    change.lock      held by whoever is changing it
    members/<id>     one file per live process, which holds a lock on it: the generation that it has reached

The folder may be on a volume shared by several containers of one host.
"""

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from inference_core.errors import Unavailable


class Desired(msgspec.Struct, frozen=True):
    generation: int = 0
    # The version to serve of each model; None: unloaded on request.
    models: dict[str, str | None] = {}
    # What the repository proposed for each model when this was written: polling acts on what differs from it.
    proposed: dict[str, str] = {}
    # Why a version was refused, by "<name>/<version>".
    refused: dict[str, str] = {}


class Progress(msgspec.Struct):
    """How far one process has come, and why it could not serve what was desired, by model name."""

    generation: int = 0
    failures: dict[str, str] = {}


class SharedState:
    def __init__(self, folder: Path) -> None:
        self._desired = folder / "desired.json"
        self._lock = folder / "change.lock"
        self._members = folder / "members"
        self._members.mkdir(parents=True, exist_ok=True)

    def read(self) -> Desired:
        try:
            return msgspec.json.decode(self._desired.read_bytes(), type=Desired)
        except FileNotFoundError:
            return Desired()

    def write(self, desired: Desired) -> None:
        _replace(self._desired, msgspec.json.encode(desired))

    def stamp(self) -> tuple[int, int]:
        """A value that differs once `desired.json` has been written again."""
        try:
            status = self._desired.stat()
        except FileNotFoundError:
            return (0, 0)
        return (status.st_ino, status.st_mtime_ns)

    @contextmanager
    def exclusive(self, timeout: float) -> Iterator[None]:
        """Hold the right to change what is desired; Unavailable if another has it for longer than `timeout` seconds."""
        try:
            lock = self._lock.open("a")
        except OSError as error:
            raise Unavailable(f"model repository: its state folder is lost ({error.strerror})") from None
        with lock as file:
            deadline = time.monotonic() + timeout
            while not _try_lock(file.fileno()):
                if time.monotonic() >= deadline:
                    raise Unavailable("model repository: another change is under way")
                time.sleep(0.01)
            yield

    def join(self) -> "Member":
        return Member(self._members)

    def progress(self) -> list[Progress]:
        """Of every live process; the files of dead ones are removed."""
        found = []
        for path in self._members.glob("*.json"):
            try:
                with path.open("rb") as file:
                    if _try_lock(file.fileno()):
                        path.unlink()
                    else:
                        found.append(_progress(file.read()))
            except FileNotFoundError:  # another process removed it first
                continue
        return found


class Member:
    """This process among those that share the state, for as long as it lives or until `leave`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
        new = self._path.with_suffix(".new")
        # Not its number: once the file is closed that is another file's.
        self._file = new.open("x+b", buffering=0)  # open, and locked, until the member leaves
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.report(Progress())
        new.rename(self._path)  # visible only once it is locked, lest it be taken for a dead one's

    def report(self, progress: Progress) -> None:
        text = msgspec.json.encode(progress)
        fd = self._file.fileno()
        os.pwrite(fd, text.ljust(max(len(text), os.fstat(fd).st_size)), 0)

    def leave(self) -> None:
        self._path.unlink(missing_ok=True)
        self._file.close()


def _progress(text: bytes) -> Progress:
    try:
        return msgspec.json.decode(text, type=Progress)
    except msgspec.DecodeError:  # read in the middle of a write: it will have come further the next time
        return Progress()


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _replace(path: Path, text: bytes) -> None:
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_bytes(text)
    new.replace(path)
