"""What keeps jobs going and the disk free, done by one worker at a time.

A job whose worker has died, whose next attempt is due, or that the queue has lost, is put on the queue again: its lock
says within seconds that nobody has it. Results are removed after a day, failures after a week.
"""

import fcntl
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import get_args

import structlog

from inference_core.job_queue import JobQueue
from inference_core.jobs import ENDED, JobStore, State, Status, StoredJob, created
from observability.families import JOBS, JOBS_BYTES, JOBS_LIMIT_BYTES, OLDEST_JOB_SECONDS

LOOK_SECONDS = 2.0
# How long a job may wait until it is put on the queue again, should that have lost it.
LOST_SECONDS = 4.0
RUBBISH_SECONDS = 3600.0

log = structlog.get_logger()


class Housekeeper:
    def __init__(self, store: JobStore, queue: JobQueue, keep_seconds: float, keep_failed_seconds: float) -> None:
        self._store = store
        self._queue = queue
        self._lock = store.root / "housekeeping.lock"
        self._keep_seconds = keep_seconds
        self._keep_failed_seconds = keep_failed_seconds
        # Attempts that have been put on the queue by us, and when.
        self._enqueued: dict[str, tuple[int, float]] = {}

    def start(self) -> None:
        threading.Thread(target=self._keep_house_for_ever, name="housekeeping", daemon=True).start()

    def keep_house(self) -> None:
        """Look at every job, unless another worker does."""
        with self._lock.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _tell({}, 0.0)  # who looks at them tells
                return
            seen, waiting = set(), self._queue.waiting()
            numbers, longest, now = Counter[Status](), 0.0, time.time()
            for stored in self._store.all():
                seen.add(stored.folder.name)
                try:
                    state = stored.state()
                    numbers[state.status] += 1
                    if state.status == "queued":
                        longest = max(longest, now - max(state.not_before, created(stored.folder.name)))
                    self._look_at(stored, state, waiting)
                except Exception as error:  # whatever has become of its folder, others are still to be looked at
                    log.warning("a job cannot be looked at", job=stored.folder.name, reason=str(error))
            self._enqueued = {name: when for name, when in self._enqueued.items() if name in seen}
            self._store.remove_rubbish(RUBBISH_SECONDS)
            _tell(numbers, longest)
            JOBS_BYTES.of().set(self._store.used_bytes())
            JOBS_LIMIT_BYTES.of().set(self._store.max_bytes)

    def _look_at(self, stored: StoredJob, state: State, waiting: set[str] | None) -> None:
        if state.status not in ENDED:
            is_lost = waiting is not None and stored.folder.name not in waiting
            if is_lost and self._is_abandoned(stored, state):
                self._enqueue_again(stored, state)
        elif time.time() - (state.ended or 0) > self._kept(state):
            self._store.remove(stored)

    def _kept(self, state: State) -> float:
        return self._keep_failed_seconds if state.status == "failed" else self._keep_seconds

    def _is_abandoned(self, stored: StoredJob, state: State) -> bool:
        """Whether it should be worked on, and nobody does or will unless we see to it."""
        attempts, when = self._enqueued.get(stored.folder.name, (-1, 0.0))
        if attempts == state.attempts and time.monotonic() - when < LOST_SECONDS:
            return False
        if state.status == "queued" and not state.not_before:  # who accepted it has put it on the queue
            if time.time() - stored.folder.stat().st_mtime < LOST_SECONDS:
                return False
        elif time.time() < state.not_before:
            return False
        with stored.locked() as is_free:
            return is_free

    def _enqueue_again(self, stored: StoredJob, state: State) -> None:
        if self._queue.enqueue(stored.folder.parent.name, stored.folder.name):
            self._enqueued[stored.folder.name] = (state.attempts, time.monotonic())
            log.warning("job put on the queue again", job=stored.folder.name, status=state.status, done=state.done)

    def _keep_house_for_ever(self) -> None:
        while True:
            try:
                self.keep_house()
            except Exception:  # whatever it is, this thread must go on
                log.exception("housekeeping failed")
            time.sleep(LOOK_SECONDS)


def _tell(numbers: Mapping[Status, int], longest: float) -> None:
    for status in get_args(Status):
        JOBS.of(status).set(numbers.get(status, 0))
    OLDEST_JOB_SECONDS.of().set(longest)
