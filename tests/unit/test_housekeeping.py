"""Which jobs are put on the queue again, which are removed, and when."""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from batch import Clock, Queue, lines, make_store, submit

from batch_worker import housekeeping
from batch_worker.housekeeping import LOST_SECONDS, RUBBISH_SECONDS, Housekeeper
from inference_core import jobs
from inference_core.jobs import JobStore, State, StoredJob

KEEP, KEEP_FAILED = 100.0, 1000.0


class House:
    """A store, a queue, the one who keeps them, and a clock that stands still."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self.store: JobStore = make_store(root)
        self.queue = Queue()
        self.clock = clock
        self.keeper = self.another()

    def another(self) -> Housekeeper:
        return Housekeeper(self.store, self.queue, KEEP, KEEP_FAILED)  # type: ignore[arg-type]  # a queue without Redis

    def job(self, age: float = 0, **state: Any) -> StoredJob:
        """One that was submitted `age` seconds ago."""
        stored = submit(self.store, lines([1]))
        if state:
            stored.write_state(State(**state))
        os.utime(stored.folder, (self.clock.now - age,) * 2)
        return stored

    def enqueued(self) -> list[str]:
        """What is put on the queue now, which then is empty again."""
        self.keeper.keep_house()
        found = [job_id for _, job_id in self.queue.jobs]
        self.queue.jobs.clear()
        return found


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House(tmp_path, Clock(monkeypatch, housekeeping, jobs))


# The queue has lost it.


@pytest.mark.parametrize(("age", "is_lost"), [(0, False), (LOST_SECONDS - 1, False), (LOST_SECONDS + 1, True)])
def test_what_waits_and_is_not_on_the_queue_has_been_lost(house: House, age: float, is_lost: bool) -> None:
    """Unless who accepted it is just about to put it there."""
    stored = house.job(age)
    assert house.enqueued() == ([stored.folder.name] if is_lost else [])


def test_it_is_put_there_as_its_owners(house: House) -> None:
    stored = house.job(LOST_SECONDS + 1)
    house.keeper.keep_house()
    assert house.queue.jobs == [("anna", stored.folder.name)]


def test_what_waits_its_turn_is_not_lost(house: House) -> None:
    """However many are before it."""
    queued = [("berta", "another"), ("anna", house.job(1e6).folder.name)]
    house.queue.jobs += queued
    house.keeper.keep_house()
    assert house.queue.jobs == queued


def test_what_was_lost_comes_after_those_that_wait(house: House) -> None:
    """Their being there says nothing about it."""
    house.queue.jobs.append(("berta", "another"))
    stored = house.job(LOST_SECONDS + 1)
    house.keeper.keep_house()
    assert house.queue.jobs == [("berta", "another"), ("anna", stored.folder.name)]


def test_while_the_queue_is_away_nothing_is_known_to_be_lost(house: House) -> None:
    stored = house.job(LOST_SECONDS + 1)
    house.queue.away = True
    assert house.enqueued() == []
    house.queue.away = False
    assert house.enqueued() == [stored.folder.name]


def test_what_was_put_there_again_and_lost_again_is_put_there_again(house: House) -> None:
    """But not at each look: whoever takes it needs a moment."""
    stored = house.job(LOST_SECONDS + 1)
    assert house.enqueued() == [stored.folder.name]
    house.clock.now += LOST_SECONDS - 1
    assert house.enqueued() == []
    house.clock.now += 2
    assert house.enqueued() == [stored.folder.name]


# Its worker has died, or has left it.


def test_what_runs_and_is_nobodys_goes_on_at_once(house: House) -> None:
    """Its lock tells, whatever else is on the queue."""
    stored = house.job(status="running", attempts=1)
    house.queue.jobs.append(("berta", "another"))
    house.keeper.keep_house()
    assert house.queue.jobs == [("berta", "another"), ("anna", stored.folder.name)]


def test_what_somebody_works_on_is_left_to_it(house: House) -> None:
    stored = house.job(1e6, status="running", attempts=1)
    with StoredJob(stored.folder).locked():
        assert house.enqueued() == []
    assert house.enqueued() == [stored.folder.name]


@pytest.mark.parametrize(("due_in", "is_due"), [(1, False), (0, True), (-1, True)])
def test_the_next_attempt_begins_when_it_is_due(house: House, due_in: float, is_due: bool) -> None:
    stored = house.job(status="queued", attempts=1, not_before=house.clock.now + due_in)
    assert house.enqueued() == ([stored.folder.name] if is_due else [])


def test_each_attempt_is_put_there_by_itself(house: House) -> None:
    """That the last one was a moment ago says nothing about the next."""
    stored = house.job(status="running", attempts=1)
    assert house.enqueued() == [stored.folder.name]
    assert house.enqueued() == []
    stored.write_state(State("running", attempts=2))
    assert house.enqueued() == [stored.folder.name]


@pytest.mark.parametrize("status", jobs.ENDED)
def test_what_has_ended_is_never_put_there(house: House, status: str) -> None:
    house.job(1e6, status=status, ended=house.clock.now)
    assert house.enqueued() == []


# What is old is removed.


@pytest.mark.parametrize(("status", "kept"), [("succeeded", KEEP), ("cancelled", KEEP), ("failed", KEEP_FAILED)])
def test_what_has_ended_is_kept_for_its_time_and_no_longer(house: House, status: str, kept: float) -> None:
    """Failures longer, as somebody will want to know why."""
    stored = house.job(1e6, status=status, ended=house.clock.now)
    house.clock.now += kept - 1
    house.keeper.keep_house()
    assert stored.folder.exists()
    house.clock.now += 2
    house.keeper.keep_house()
    assert not stored.folder.exists()
    assert list(house.store.all()) == []


@pytest.mark.parametrize("status", ["queued", "running"])
def test_what_has_not_ended_is_kept_however_old(house: House, status: str) -> None:
    stored = house.job(1e9, status=status)
    house.keeper.keep_house()
    assert stored.folder.exists()


def test_half_submissions_are_removed(house: House) -> None:
    folder = house.store.root / "tmp/half"
    folder.mkdir()
    for age, is_there in ((RUBBISH_SECONDS - 1, True), (RUBBISH_SECONDS + 1, False)):
        os.utime(folder, (house.clock.now - age,) * 2)
        house.keeper.keep_house()
        assert folder.exists() == is_there


def test_of_what_is_removed_nothing_is_remembered(house: House) -> None:
    stored = house.job(status="running", attempts=1)
    house.keeper.keep_house()
    assert house.keeper._enqueued
    stored.write_state(State("succeeded", ended=house.clock.now - KEEP - 1))
    house.keeper.keep_house()
    house.keeper.keep_house()
    assert house.keeper._enqueued == {}


# Several workers.


def test_one_worker_at_a_time_keeps_house(house: House) -> None:
    stored = house.job(LOST_SECONDS + 1)
    with (house.store.root / "housekeeping.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert house.enqueued() == []
    house.another().keep_house()
    assert house.queue.jobs == [("anna", stored.folder.name)]


def test_what_the_machine_has_died_on_holds_up_nobody(house: House) -> None:
    """It is as if it had not begun."""
    torn, other = house.job(status="running"), house.job(status="running")
    (torn.folder / "state.json").write_bytes(b"")
    os.utime(torn.folder, (house.clock.now - LOST_SECONDS - 1,) * 2)
    assert set(house.enqueued()) == {torn.folder.name, other.folder.name}


def test_what_cannot_be_looked_at_holds_up_nobody(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, other = house.job(LOST_SECONDS + 1), house.job(LOST_SECONDS + 1)
    monkeypatch.setattr(house.store, "all", lambda: iter([gone, other]))
    house.store.remove(gone)
    assert house.enqueued() == [other.folder.name]
