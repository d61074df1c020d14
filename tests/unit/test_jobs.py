"""The store of jobs: what is on disk, who may find it, and how much of it there may be."""

import os
import threading
import time
from pathlib import Path

import pytest
from batch import Clock, lines, make_job, make_store, submit

from inference_core import jobs
from inference_core.errors import Conflict, Mismatch, NotFound, TooManyJobs, Unavailable
from inference_core.jobs import (
    ABANDONED_SECONDS,
    MEASURE_SECONDS,
    Delivery,
    JobStore,
    State,
    StoredJob,
    Taken,
    new_id,
    owner_of,
)

ROWS = [b"1\n", b"2\n"]


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return make_store(tmp_path)


def end(stored: StoredJob, status: jobs.Status = "succeeded") -> None:
    stored.write_state(State(status, ended=time.time()))


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_what_is_submitted_is_kept_as_it_is(store: JobStore) -> None:
    """Whoever opens the folder later, in whichever process, finds it."""
    job = make_job(kind="photos", webhook="https://a.example/", top_k=3)
    stored, is_new = store.submit(job, [b"a", b"", b"bc"], None, "request")
    assert is_new
    again = make_store(store.root).get("anna", job.id)
    assert again.folder == stored.folder
    assert again.job() == job
    assert again.input.read_bytes() == b"abc"
    assert again.state() == State()
    assert again.delivery() == Delivery()
    assert list((store.root / "tmp").iterdir()) == []


def test_it_is_durable_before_it_is_there(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was acknowledged survives the machine: each file is synced, then its folder is given its name."""
    done: list[str] = []
    path_of = lambda descriptor: Path(f"/proc/self/fd/{descriptor}").readlink().name
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(path_of(descriptor)))
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, target: (done.append("rename"), rename(self, target))[1])
    submit(store)
    assert {"input", "job.json"} <= set(done[:-2])
    assert done[-2:] == ["rename", "anna"]


def test_of_what_fails_halfway_nothing_is_left(store: JobStore) -> None:
    """Nor is its key taken: to try again is a first time."""

    def rows() -> list[bytes]:
        raise OSError("no space left on device")

    job = make_job()
    with pytest.raises(OSError, match="no space"):
        store.submit(job, (row for row in rows()), "key", "request")
    assert not any("input" in name or "job.json" in name for name in files(store.root))
    with pytest.raises(NotFound):
        store.get("anna", job.id)
    assert store.submit(make_job(), ROWS, "key", "request")[1]


# Who finds what.


@pytest.mark.parametrize("job_id", ["", ".", "..", "keys", "../anna", "x" * 5000, "0" * 12 + "-" + "0" * 16, "a\0b"])
def test_what_is_no_job_is_not_found(store: JobStore, job_id: str) -> None:
    submit(store)
    with pytest.raises(NotFound):
        store.get("anna", job_id)


def test_a_job_is_its_owners_alone(store: JobStore) -> None:
    mine = submit(store).folder.name
    for owner in ("berta", "everybody", "", ".", "anna/x"):
        with pytest.raises(NotFound):
            store.get(owner, mine)
        assert store.newest(owner, None, 10) == []
    assert store.newest("anna", None, 10)[0].folder.name == mine


def test_owners_are_folders_that_no_name_leads_out_of() -> None:
    """Different for different subjects, and for nobody."""
    subjects = [None, "", "everybody", "..", "a/b", "anna", "Anna", "x" * 256]
    owners = [owner_of(subject) for subject in subjects]
    assert len(set(owners)) == len(owners)
    assert all(owner.isalnum() for owner in owners)


def test_later_jobs_have_greater_ids_that_nobody_can_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the clock has gained a digit; 64 bits of each are random."""
    clock = Clock(monkeypatch, jobs)
    ids = []
    for milliseconds in (10**12, 17 * 10**11, 17 * 10**11 + 1, 4 * 10**12):
        clock.now = milliseconds / 1000
        ids.append(new_id())
    assert ids == sorted(ids)
    assert all(jobs.JOB_ID.fullmatch(each) for each in ids)
    assert len({new_id() for _ in range(1000)}) == 1000, "while the clock stands still"


def test_the_list_is_newest_first_in_pages_without_gaps(store: JobStore) -> None:
    """Whatever is added meanwhile."""
    names = [submit(store, id=f"{i:012x}-{i:016x}").folder.name for i in range(7)]
    first = [stored.folder.name for stored in store.newest("anna", None, 3)]
    submit(store, id=f"{9:012x}-{9:016x}")
    second = [stored.folder.name for stored in store.newest("anna", first[-1], 3)]
    third = [stored.folder.name for stored in store.newest("anna", second[-1], 3)]
    assert first + second + third == names[::-1]
    assert store.newest("anna", third[-1], 3) == []


def test_all_finds_everybodys(store: JobStore) -> None:
    mine = {submit(store, owner=owner).folder for owner in ("anna", "berta", "berta")}
    assert {stored.folder for stored in store.all()} == mine


# States.


def test_a_state_is_written_whole(store: JobStore) -> None:
    """A reader finds the old or the new one, and never half of it."""
    stored, wrong = submit(store), []
    states = [State("running", done=done, reason="x" * done) for done in (0, 5000)]
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            if stored.state() not in (State(), *states):
                wrong.append(stored.state())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(300):
        stored.write_state(states[i % 2])
    over.set()
    reader.join(20)
    assert wrong == []
    assert stored.state() == states[1]


def test_a_delivery_is_there_until_it_is_written_off(store: JobStore) -> None:
    stored = submit(store)
    assert stored.delivery() is None
    stored.write_delivery(Delivery(2, 7.0))
    assert stored.delivery() == Delivery(2, 7.0)
    for _ in range(2):
        stored.write_delivery(None)
        assert stored.delivery() is None


def test_one_at_a_time_works_on_a_job(store: JobStore) -> None:
    stored = submit(store)
    with stored.locked() as first, StoredJob(stored.folder).locked() as second:
        assert (first, second) == (True, False)
    with stored.locked() as again:
        assert again


def test_one_that_waits_is_cancelled_at_once(store: JobStore) -> None:
    stored = submit(store)
    assert not stored.is_cancelled()
    assert stored.cancel().status == "cancelled"
    assert stored.is_cancelled()
    assert stored.state().status == "cancelled"
    assert stored.state().ended is not None


def test_one_that_is_worked_on_is_asked_to_end(store: JobStore) -> None:
    """Whoever works on it writes what came of that."""
    stored = submit(store)
    with stored.locked():
        stored.write_state(State("running", done=1))
        assert StoredJob(stored.folder).cancel() == State("running", done=1)
        assert stored.is_cancelled()


@pytest.mark.parametrize("status", jobs.ENDED)
def test_one_that_has_ended_stays_as_it_is(store: JobStore, status: jobs.Status) -> None:
    stored = submit(store)
    end(stored, status)
    before = stored.state()
    assert stored.cancel() == stored.state() == before


def test_what_is_cancelled_after_its_worker_died_has_whole_lines_and_their_number(store: JobStore) -> None:
    """The state on disk was older than the results, and the last line half a one."""
    stored = submit(store, lines(range(9)))
    stored.results.write_bytes(b'{"index":0,"prediction":1}\n{"index":1,"error":"no"}\n{"index":2,"pre')
    stored.write_state(State("running", done=0, attempts=1))
    state = stored.cancel()
    assert (state.status, state.done, state.errors) == ("cancelled", 2, 1)
    assert stored.results.read_bytes() == b'{"index":0,"prediction":1}\n{"index":1,"error":"no"}\n'


@pytest.mark.parametrize("torn", [b"", b"{", bytes(100)])
def test_what_the_machine_has_died_on_can_be_read(store: JobStore, torn: bytes) -> None:
    """After that a file may be there whose content is not."""
    stored, _ = store.submit(make_job(webhook="https://a.example/"), ROWS, "key", "request")
    for path in (
        stored.folder / "state.json",
        stored.folder / "webhook.json",
        *(store.root / "owners/anna/keys").iterdir(),
    ):
        path.write_bytes(torn)
    assert stored.state() == State()
    assert stored.delivery() == Delivery()
    assert store.submit(make_job(), ROWS, "key", "request")[1], "nobody knows what the key stood for"
    store.remove(stored)


# Bounds.


def test_a_client_has_as_many_unfinished_jobs_as_it_may_and_no_more(tmp_path: Path) -> None:
    store = make_store(tmp_path, max_unfinished=2)
    first, _ = submit(store), submit(store)
    with pytest.raises(TooManyJobs, match="expected at most 2 that have not ended"):
        submit(store)
    submit(store, owner="berta")
    end(first, "failed")
    submit(store)
    with pytest.raises(TooManyJobs):
        submit(store)


@pytest.mark.parametrize("age", [0, MEASURE_SECONDS + 1])
def test_the_disk_is_filled_to_the_bound_and_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float
) -> None:
    """Neither when it has just been measured nor later."""
    monkeypatch.setattr(jobs, "OWNERS_PART", 1)
    clock = Clock(monkeypatch, jobs)
    store = make_store(tmp_path, max_bytes=10_000)
    submit(store, [bytes(1000)])
    clock.now += age
    room = 10_000 - store.used_bytes()
    with pytest.raises(Unavailable, match=f"no room for {room + 1} bytes until older ones are removed"):
        submit(store, [bytes(room + 1)])
    submit(store, [bytes(room)])
    with pytest.raises(Unavailable):
        submit(store, [b"1"])


def test_one_owner_has_a_share_of_the_disk_and_no_more(tmp_path: Path) -> None:
    """What has ended takes none of it: its input goes."""
    store = make_store(tmp_path, max_bytes=40_000)
    stored = submit(store, [bytes(10_000)])
    with pytest.raises(TooManyJobs, match="expected at most 10000 bytes in those that have not ended, got more"):
        submit(store, [b"1"])
    submit(store, [bytes(10_000)], owner="berta")
    stored.cancel()
    assert not stored.input.exists()
    submit(store, [bytes(10_000)])


def test_what_is_removed_makes_room(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "OWNERS_PART", 1)
    store.max_bytes = 3000
    stored = submit(store, [bytes(2000)])
    with pytest.raises(Unavailable):
        submit(store, [bytes(2000)])
    store.remove(stored)
    store._measured_at = -1e9
    submit(store, [bytes(2000)])


def test_no_more_jobs_than_allowed_are_taken_at_once(tmp_path: Path) -> None:
    """By several workers, which have each a store of their own."""
    outcomes: list[bool] = []
    barrier = threading.Barrier(20)

    def post() -> None:
        store = make_store(tmp_path, max_unfinished=3)
        barrier.wait(20)
        try:
            outcomes.append(store.submit(make_job(), ROWS, None, "request")[1])
        except TooManyJobs:
            outcomes.append(False)

    threads = [threading.Thread(target=post) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (len(outcomes), sum(outcomes)) == (20, 3)


# Idempotency-Key.


def test_the_same_key_and_request_are_the_same_job(store: JobStore) -> None:
    first, is_new = store.submit(make_job(), ROWS, "key", "request")
    again, is_new_again = store.submit(make_job(), ROWS, "key", "request")
    assert (is_new, is_new_again) == (True, False)
    assert first.folder == again.folder
    assert len(store.newest("anna", None, 10)) == 1


def test_the_same_key_again_is_answered_when_there_is_no_room(tmp_path: Path) -> None:
    """It asks for none."""
    store = make_store(tmp_path, max_unfinished=1)
    first, _ = store.submit(make_job(), ROWS, "key", "request")
    assert store.submit(make_job(), ROWS, "key", "request")[0].folder == first.folder
    with pytest.raises(TooManyJobs):
        store.submit(make_job(), ROWS, "other", "request")


def test_the_same_key_for_something_else_is_refused(store: JobStore) -> None:
    store.submit(make_job(), ROWS, "key", "request")
    with pytest.raises(Mismatch, match="expected the request that it was first sent with"):
        store.submit(make_job(), ROWS, "key", "another")
    assert store.submit(make_job(), ROWS, "Key", "another")[1]
    assert store.submit(make_job(owner="berta"), ROWS, "key", "another")[1], "keys are one's own"


def test_a_key_whose_job_is_on_its_way_is_a_conflict(store: JobStore) -> None:
    def again(_: int) -> list[bytes]:
        with pytest.raises(Conflict, match="is on its way"):
            store.submit(make_job(), ROWS, "key", "request")
        with pytest.raises(Mismatch):
            store.submit(make_job(), ROWS, "key", "another")
        return ROWS

    first, is_new = store.submit(make_job(), (row for rows in map(again, [0]) for row in rows), "key", "request")
    assert is_new
    assert store.submit(make_job(), ROWS, "key", "request")[0].folder == first.folder


@pytest.mark.parametrize(("age", "is_taken_over"), [(ABANDONED_SECONDS - 1, False), (ABANDONED_SECONDS + 1, True)])
def test_a_key_is_taken_over_from_who_has_died(store: JobStore, age: float, is_taken_over: bool) -> None:
    """Of who took it and never came to the end nothing else is left."""
    keys = store.root / "owners/anna/keys"
    keys.mkdir(parents=True)
    assert store._take(keys.parent, "key", Taken(new_id(), "request")) is None
    [path] = keys.iterdir()
    os.utime(path, (time.time() - age,) * 2)
    if not is_taken_over:
        with pytest.raises(Conflict):
            store.submit(make_job(), ROWS, "key", "request")
        return
    stored, is_new = store.submit(make_job(), ROWS, "key", "request")
    assert is_new
    assert store.submit(make_job(), ROWS, "key", "request")[0].folder == stored.folder


def test_the_key_of_a_job_that_was_removed_is_free_again(store: JobStore) -> None:
    """Others are as they were."""
    first, _ = store.submit(make_job(), ROWS, "key", "request")
    other, _ = store.submit(make_job(), ROWS, "other", "request")
    store.remove(first)
    with pytest.raises(NotFound):
        store.get("anna", first.folder.name)
    again, is_new = store.submit(make_job(), ROWS, "key", "another")
    assert is_new
    assert again.folder != first.folder
    assert store.submit(make_job(), ROWS, "other", "request")[0].folder == other.folder


def test_of_many_at_once_with_one_key_one_makes_a_job(store: JobStore) -> None:
    """The others are told its id, or to ask again."""
    outcomes: list[object] = []
    barrier = threading.Barrier(20)

    def post() -> None:
        barrier.wait(20)
        try:
            outcomes.append(store.submit(make_job(), ROWS, "key", "request")[1])
        except Conflict:
            outcomes.append("in progress")

    threads = [threading.Thread(target=post) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(outcomes) == 20
    assert outcomes.count(True) == len(store.newest("anna", None, 100)) == 1


# Rubbish.


def test_what_never_became_a_job_is_removed_in_the_end(store: JobStore) -> None:
    for name, age in (("old", 100), ("young", 50)):
        folder = store.root / "tmp" / name
        folder.mkdir()
        (folder / "input").write_bytes(b"1\n")
        os.utime(folder, (time.time() - age,) * 2)
    store.remove_rubbish(75)
    assert [path.name for path in (store.root / "tmp").iterdir()] == ["young"]


def test_of_a_job_that_is_removed_nothing_is_left(store: JobStore) -> None:
    stored, _ = store.submit(make_job(), ROWS, "key", "request")
    stored.results.write_bytes(b"{}\n")
    end(stored)
    store.remove(stored)
    assert files(store.root) <= {"owners/anna/lock"}
    assert list(store.all()) == []
