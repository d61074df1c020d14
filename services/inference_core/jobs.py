"""Batch jobs on disk, where API and workers both find them: what was asked for, how far it is, and what came of it.

    tmp/<id>/                      a submission that is not complete yet
    owners/<owner>/<id>/           a job; `owner` stands for the subject that made it, so that nobody finds another's
        job.json                   what was asked for; never changes
        input                      one JSON instance a line, or a ZIP of photos
        state.json                 how far it is; missing until a worker has had it
        results.jsonl              one line per row, in the order of the input
        cancelled                  somebody wants it to end
        webhook.json               somebody is to be told when it has ended, and has not been yet
        lock                       held by who works on it, and by nobody once that has died
    owners/<owner>/keys/<digest>   the job that an Idempotency-Key stands for
    owners/<owner>/lock            held for a moment by who adds to either

Files rather than Redis: they are larger than what belongs there, they survive it, and the kernel lets go of a lock on a
file in the moment in which its process dies. The queue only says that there is something to do (see job_queue.py).
"""

import fcntl
import hashlib
import math
import os
import re
import secrets
import shutil
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

from inference_core.errors import Conflict, Mismatch, NotFound, TooManyJobs, Unavailable

JOB_ID = re.compile(r"[0-9a-f]{12}-[0-9a-f]{16}")
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Kind = Literal["instances", "photos"]
ENDED = ("succeeded", "failed", "cancelled")
# An Idempotency-Key whose job has not come after so many seconds: who was about to make it has died.
ABANDONED_SECONDS = 60.0
# How old the knowledge of how full the disk is may be.
MEASURE_SECONDS = 5.0
# Of all room, one owner's unfinished jobs may have one part in so many.
OWNERS_PART = 4


class Job(msgspec.Struct, frozen=True):
    """`kind` says what a row is: an instance, as `:predict` takes it, or a photo. Times are in seconds of the day."""

    id: str
    owner: str
    model: str
    version: str
    digest: str
    kind: Kind
    rows: int
    bytes: int
    created: float
    request_id: str
    # W3C Trace Context: the span in which it was handed over.
    traceparent: str = ""
    top_k: int = 5
    # A URL that is to be told when it has ended.
    webhook: str | None = None


class State(msgspec.Struct, frozen=True):
    """`done` rows have a result, `errors` of them say what was wrong with the row. `not_before`: the next attempt."""

    status: Status = "queued"
    done: int = 0
    errors: int = 0
    attempts: int = 0
    started: float | None = None
    updated: float | None = None
    ended: float | None = None
    not_before: float = 0.0
    reason: str = ""


class Delivery(msgspec.Struct, frozen=True):
    """Of a webhook: attempts so far, and when the next one is due, in seconds of the day."""

    attempts: int = 0
    not_before: float = 0.0


class Outcome(msgspec.Struct):
    """What a line of the results is read for here."""

    error: str | None = None


class Taken(msgspec.Struct, frozen=True):
    """What an Idempotency-Key stands for: a job, and a digest of what was asked for."""

    job: str
    request: str


class StoredJob:
    """A job's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.input = folder / "input"
        self.results = folder / "results.jsonl"

    def job(self) -> Job:
        """NotFound if it has just been removed, or is damaged."""
        try:
            return msgspec.json.decode((self.folder / "job.json").read_bytes(), type=Job)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NotFound(f"job '{self.folder.name}': cannot be read: {error}") from None

    def state(self) -> State:
        """As if it had not begun where the machine has died on it: whoever works on it finds what results it has."""
        try:
            return msgspec.json.decode((self.folder / "state.json").read_bytes(), type=State)
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return State()

    def write_state(self, state: State) -> None:
        """For who holds the lock."""
        replace_file(self.folder / "state.json", msgspec.json.encode(state))

    def resume(self) -> tuple[int, int]:
        """Rows that have a result, and errors among them; a line that was half written is cut off. As `write_state`."""
        done = errors = end = 0
        if self.results.exists():
            with self.results.open("r+b") as results:
                for line in results:
                    if not line.endswith(b"\n"):
                        break
                    end += len(line)
                    done += 1
                    errors += b'"error":' in line and msgspec.json.decode(line, type=Outcome).error is not None
                results.truncate(end)
        return done, errors

    def end(self, state: State, status: Status, reason: str = "") -> State:
        """Write down how it ended. As `write_state`; what it says of the rows is what the results have."""
        done, errors = self.resume()
        ended = msgspec.structs.replace(
            state, status=status, done=done, errors=errors, ended=time.time(), reason=reason
        )
        self.write_state(ended)
        self.input.unlink(missing_ok=True)  # nobody needs it any more, and others need the room
        return ended

    def delivery(self) -> Delivery | None:
        """Of its webhook, if there is one that has still to be called."""
        try:
            return msgspec.json.decode((self.folder / "webhook.json").read_bytes(), type=Delivery)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:  # the machine has died on it
            return Delivery()

    def write_delivery(self, delivery: Delivery | None) -> None:
        path = self.folder / "webhook.json"
        if delivery is None:
            path.unlink(missing_ok=True)
        else:
            replace_file(path, msgspec.json.encode(delivery))

    def is_cancelled(self) -> bool:
        return (self.folder / "cancelled").exists()

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Whether it is ours to work on; nobody else's until the block ends, or this process."""
        with (self.folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def cancel(self) -> State:
        """Have it end: at once if nobody works on it, else soon. One that has ended stays as it is."""
        try:
            (self.folder / "cancelled").touch()
        except FileNotFoundError:
            raise NotFound(f"job '{self.folder.name}': has just been removed") from None
        with self.locked() as is_ours:
            state = self.state()
            if is_ours and state.status not in ENDED:
                state = self.end(state, "cancelled")
        return state


class JobStore:
    """`max_unfinished` jobs of one owner that have not ended, `max_bytes` of all together."""

    def __init__(self, root: Path, max_unfinished: int, max_bytes: int) -> None:
        self.root = root
        self._max_unfinished = max_unfinished
        self.max_bytes = max_bytes
        self._staging = root / "tmp"
        self._owners = root / "owners"
        self._used, self._measured_at = 0, -math.inf
        for folder in (self._staging, self._owners):
            folder.mkdir(parents=True, exist_ok=True)

    def submit(self, job: Job, rows: Iterable[bytes], key: str | None, request: str) -> tuple[StoredJob, bool]:
        """Keep a job durably; returns it, and whether it is new rather than what `key` stood for already.

        `request` is a digest of what was asked for. Mismatch if the key stands for something else, Conflict while its
        job is on its way; TooManyJobs or Unavailable if there is no room.
        """
        owner = self._owners / job.owner
        (owner / "keys").mkdir(parents=True, exist_ok=True)
        taken = self._take(owner, key, Taken(job.id, request)) if key is not None else None
        if taken is not None:
            return taken, False
        staged = self._staging / job.id
        try:
            self._check_room(owner, job)
            staged.mkdir()
            _write_durably(staged / "input", rows)
            _write_durably(staged / "job.json", [msgspec.json.encode(job)])
            if job.webhook:
                _write_durably(staged / "webhook.json", [msgspec.json.encode(Delivery())])
            _sync(staged)
            with _alone(owner):
                self._check_room(owner, job)  # others may have come meanwhile
                staged.rename(owner / job.id)
            _sync(owner)
            self._used += job.bytes
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            if key is not None:
                self._let_go(owner, key, job.id)
            raise
        return StoredJob(owner / job.id), True

    def find(self, owner: str, key: str, request: str) -> StoredJob | None:
        """The job that `key` stands for, if it is there already; as `submit`."""
        folder = self._owners / owner
        try:
            taken = msgspec.json.decode(_key_file(folder, key).read_bytes(), type=Taken)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return _same(folder, taken, request)

    def get(self, owner: str, job_id: str) -> StoredJob:
        """A job of `owner`; NotFound if it has none of this id."""
        folder = self._owners / owner / job_id
        if not JOB_ID.fullmatch(job_id) or not folder.is_dir():
            raise NotFound(f"job '{job_id}': there is none; results are kept for a while only")
        return StoredJob(folder)

    def newest(self, owner: str, before: str | None, count: int) -> list[StoredJob]:
        """The newest jobs of `owner`, or those older than `before`."""
        names = [name for name in self._names(owner) if before is None or name < before]
        return [StoredJob(self._owners / owner / name) for name in sorted(names, reverse=True)[:count]]

    def all(self) -> Iterator[StoredJob]:
        for owner in self._owners.iterdir():
            for name in self._names(owner.name):
                yield StoredJob(owner / name)

    def remove(self, stored: StoredJob) -> None:
        """With its Idempotency-Key. In two steps, so that nobody finds half of one."""
        for path in (stored.folder.parent / "keys").iterdir():
            with suppress(OSError, msgspec.DecodeError):
                if msgspec.json.decode(path.read_bytes(), type=Taken).job == stored.folder.name:
                    path.unlink()
        rubbish = self._staging / f"{stored.folder.name}-removed"
        stored.folder.rename(rubbish)
        shutil.rmtree(rubbish, ignore_errors=True)

    def remove_rubbish(self, older_than: float) -> None:
        """Submissions that were never completed."""
        for path in self._staging.iterdir():
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > older_than:
                    shutil.rmtree(path, ignore_errors=True)

    def used_bytes(self) -> int:
        """On disk, as it was a few seconds ago, with what this process has taken since."""
        if time.monotonic() - self._measured_at > MEASURE_SECONDS:
            self._used = sum(_size(Path(folder, name)) for folder, _, names in os.walk(self.root) for name in names)
            self._measured_at = time.monotonic()
        return self._used

    def is_full(self) -> bool:
        """Whether there is no room for more results either."""
        return self.used_bytes() >= self.max_bytes

    def _names(self, owner: str) -> list[str]:
        folder = self._owners / owner
        return [path.name for path in folder.iterdir() if JOB_ID.fullmatch(path.name)] if folder.is_dir() else []

    def _check_room(self, owner: Path, job: Job) -> None:
        stored = [StoredJob(owner / name) for name in self._names(owner.name)]
        unfinished = [each for each in stored if each.state().status not in ENDED]
        if len(unfinished) >= self._max_unfinished:
            raise TooManyJobs(f"jobs: expected at most {self._max_unfinished} that have not ended, got one more")
        if self.used_bytes() + job.bytes > self.max_bytes:
            raise Unavailable(f"jobs: there is no room for {job.bytes} bytes until older ones are removed")
        share = self.max_bytes // OWNERS_PART
        if sum(_size(each.input) for each in unfinished) + job.bytes > share:
            raise TooManyJobs(f"jobs: expected at most {share} bytes in those that have not ended, got more")

    def _let_go(self, owner: Path, key: str, job_id: str) -> None:
        """Of a key, unless another has taken it over."""
        path = _key_file(owner, key)
        with _alone(owner), suppress(FileNotFoundError, msgspec.DecodeError):
            if msgspec.json.decode(path.read_bytes(), type=Taken).job == job_id:
                path.unlink()

    def _take(self, owner: Path, key: str, mine: Taken) -> StoredJob | None:
        """The job that `key` stands for; None if from now on it stands for `mine`."""
        path = _key_file(owner, key)
        with _alone(owner):
            try:
                taken, age = msgspec.json.decode(path.read_bytes(), type=Taken), time.time() - path.stat().st_mtime
            except (FileNotFoundError, msgspec.DecodeError):  # or the machine has died on it
                replace_file(path, msgspec.json.encode(mine))
                return None
            stored = _same(owner, taken, mine.request)
            if stored:
                return stored
            if age < ABANDONED_SECONDS:
                raise Conflict("Idempotency-Key: its first request is on its way; ask again")
            replace_file(path, msgspec.json.encode(mine))
            return None


def _same(owner: Path, taken: Taken, request: str) -> StoredJob | None:
    """The job of a key that was taken, once it is there; Mismatch if the key is another request's."""
    if taken.request != request:
        raise Mismatch("Idempotency-Key: expected the request that it was first sent with, got another")
    return StoredJob(owner / taken.job) if (owner / taken.job).is_dir() else None


def photos_in(archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    """The files in a ZIP that are rows of a job: all but folders and what macOS adds."""
    for entry in archive.infolist():
        if not entry.is_dir() and not entry.filename.startswith("__MACOSX/"):
            yield entry


def new_id() -> str:
    """Of later jobs greater than of earlier ones; nobody can guess another's."""
    return f"{time.time_ns() // 1_000_000:012x}-{secrets.token_hex(8)}"


def created(job_id: str) -> float:
    """When the job was handed over, in seconds of the day 1970."""
    return int(job_id.partition("-")[0], 16) / 1000


def owner_of(subject: str | None) -> str:
    """The name of a folder for a subject; one for all where nobody says who asks."""
    return hashlib.sha256((subject or "").encode()).hexdigest()[:32] if subject is not None else "everybody"


@contextmanager
def _alone(owner: Path) -> Iterator[None]:
    """Nobody else takes a key of this owner, or adds a job, until the block ends."""
    with (owner / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def replace_file(path: Path, content: bytes) -> None:
    """At once, so that a reader finds the old or the new."""
    staged = path.with_name(f"{path.name}.new")
    staged.write_bytes(content)
    staged.replace(path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # it has just been removed
        return 0


def _key_file(owner: Path, key: str) -> Path:
    return owner / "keys" / hashlib.sha256(key.encode()).hexdigest()


def _write_durably(path: Path, pieces: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
