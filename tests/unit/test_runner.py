"""How a job is worked on: in order, in batches, to its end, however often whoever works on it stops or dies."""

import base64
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch import BLUE, GREEN, RED, Clock, lines, make_runner, make_store, photo, read_lines, submit, zipped
from model_zoo import Zoo, edit_manifest
from structlog.testing import capture_logs

from batch_worker import runner as runner_module
from batch_worker.runner import BACKOFF_SECONDS, MAX_ATTEMPTS, Runner
from inference_core.errors import DeadlineExceeded
from inference_core.jobs import JobStore, State, StoredJob
from inference_core.manifest import read_package

ROWS = [[i, i + 1, i + 2] for i in range(11)]
DOUBLED = [{"index": i, "prediction": [2 * value for value in row]} for i, row in enumerate(ROWS)]


class Killed(BaseException):
    """What no handler of a job's faults takes for one."""


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return make_store(tmp_path / "jobs")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch, runner_module)


def of(folder: Path, **values: Any) -> dict[str, Any]:
    """What a job says of the model whose package lies in `folder`."""
    digest = read_package(folder, 1 << 30).digest
    return {"model": folder.parent.name, "version": folder.name, "digest": digest} | values


def run(runner: Runner, stored: StoredJob) -> State:
    runner.run(stored.folder.parent.name, stored.folder.name)
    return stored.state()


def results(stored: StoredJob) -> list[Any]:
    return read_lines(stored.results.read_bytes())


def at(number: int, act: Callable[[], Any]) -> Callable[[], None]:
    """Something to call often, which acts when it is called for the `number`th time."""
    calls = []

    def beat() -> None:
        calls.append(None)
        if len(calls) == number:
            act()

    return beat


def die() -> None:
    raise Killed


def with_model(runner: Runner, run_: Callable[[dict[str, Any]], Any], seconds: float = 1e-4) -> None:
    """Have whatever model it gets run like this."""
    get = runner._models.get

    def patched(job: Any) -> Any:
        model = get(job)
        model.seconds = seconds
        model.run = lambda feeds, outputs, options: run_(feeds)  # type: ignore[method-assign]
        return model

    runner._models.get = patched  # type: ignore[method-assign]


# What comes of rows.


def test_each_row_has_its_result_in_the_order_of_the_input(zoo: Zoo, store: JobStore) -> None:
    stored = submit(store, lines(ROWS), **of(zoo.scale()))
    state = run(make_runner(store, zoo.root), stored)
    assert results(stored) == DOUBLED
    assert (state.status, state.done, state.errors, state.attempts, state.reason) == ("succeeded", 11, 0, 1, "")
    assert state.started is not None
    assert state.ended is not None
    assert stored.job().created <= state.started <= state.ended


def test_a_row_that_is_wrong_spoils_no_other(zoo: Zoo, store: JobStore) -> None:
    """Not one that is no JSON, nor one of another shape, nor several of them in a batch."""
    wrong = {0: b"[1, 2\n", 3: b"[1, 2]\n", 4: b'[1, 2, "a"]\n', 5: b"[1, 2, 3], [4, 5, 6]\n", 10: b"null\n"}
    rows = [wrong.get(i, row) for i, row in enumerate(lines(ROWS))]
    stored = submit(store, rows, **of(zoo.scale()))
    state = run(make_runner(store, zoo.root), stored)
    found = results(stored)
    assert [each["index"] for each in found] == list(range(11))
    assert {each["index"] for each in found if each.get("error")} == wrong.keys()
    assert [each for each in found if "prediction" in each] == [each for each in DOUBLED if each["index"] not in wrong]
    assert (state.status, state.done, state.errors) == ("succeeded", 11, 5)


def test_a_row_that_the_runtime_refuses_spoils_no_other(zoo: Zoo, store: JobStore) -> None:
    stored = submit(store, lines([0, 99, 2, 1]), **of(zoo.gather()))
    assert run(make_runner(store, zoo.root), stored).errors == 1
    assert [each.get("prediction") for each in results(stored)] == [1, None, 3, 2]


def test_rows_of_different_forms_are_each_what_they_are_alone(zoo: Zoo, store: JobStore) -> None:
    """Arrays and objects, in one batch."""
    rows = [[1, 2, 3], {"width": 1, "height": 2, "depth": 3}, {"x": [1, 2, 3]}, {"width": 1}, [-1, -2, -3]]
    stored = submit(store, lines(rows), **of(zoo.named()))
    run(make_runner(store, zoo.root), stored)
    good, bad = {"total": 6, "positive": True}, {"total": -6, "positive": False}
    assert [each.get("prediction") for each in results(stored)] == [good, good, good, None, bad]


def test_a_model_that_answers_other_rows_than_it_was_asked_for_is_found_out(zoo: Zoo, store: JobStore) -> None:
    """Rather than have results of other rows; of one row alone it is plain which it is about.

    What went wrong in us is in the log, and not for clients.
    """
    runner = make_runner(store, zoo.root)
    with_model(runner, lambda feeds: [feeds["x"][feeds["x"][:, 0] > 0]])
    stored = submit(store, lines([[1, 1, 1], [-1, 1, 1], [2, 2, 2]]), **of(zoo.scale()))
    with capture_logs() as logs:
        state = run(runner, stored)
    assert (state.status, state.errors) == ("succeeded", 1)
    assert [each.get("prediction") for each in results(stored)] == [[1, 1, 1], None, [2, 2, 2]]
    assert results(stored)[1]["error"] == f"the inference failed, as logged under job {stored.folder.name}"
    assert [(line["row"], line["reason"]) for line in logs if line["event"] == "inference failed"] == [
        (1, "model scale: expected 1 rows, got 0")
    ]


def test_photos_have_names_and_labels(zoo: Zoo, store: JobStore) -> None:
    """As many labels as were asked for."""
    files = {"a/red.png": photo(RED), "broken.png": b"no photo", "blue.png": photo(BLUE)}
    stored = submit(store, [zipped(files)], **of(zoo.colour(), kind="photos", rows=3, top_k=2))
    state = run(make_runner(store, zoo.root), stored)
    red, broken, blue = results(stored)
    assert [(each["index"], each["name"]) for each in (red, broken, blue)] == list(enumerate(files))
    assert [[label["label"] for label in each["prediction"]] for each in (red, blue)] == [
        ["red", "green"],
        ["blue", "red"],
    ]
    assert broken.keys() == {"index", "name", "error"}
    assert (state.status, state.done, state.errors) == ("succeeded", 3, 1)


def test_photos_may_be_instances(zoo: Zoo, store: JobStore) -> None:
    """And so may the numbers of a photo."""
    instances: list[Any] = [{"b64": base64.b64encode(photo(colour)).decode()} for colour in (GREEN, BLUE)]
    instances.insert(1, np.ones((3, 8, 8)).tolist())
    stored = submit(store, lines(instances), **of(zoo.colour(), top_k=1))
    run(make_runner(store, zoo.root), stored)
    green, numbers, blue = [each["prediction"] for each in results(stored)]
    assert (green[0]["label"], numbers, blue[0]["label"]) == ("green", [1, 1, 1], "blue")


@pytest.mark.parametrize(("pixels", "errors"), [(64, 0), (63, 1)])
def test_a_photo_has_as_many_pixels_as_it_may_and_no_more(zoo: Zoo, store: JobStore, pixels: int, errors: int) -> None:
    stored = submit(store, [zipped({"a.png": photo()})], **of(zoo.colour(), kind="photos", rows=1))
    assert run(make_runner(store, zoo.root, max_image_pixels=pixels), stored).errors == errors


# Batches.


@pytest.mark.parametrize(("seconds", "sizes"), [(1e-6, [4, 4, 3]), (0.05, [2] * 5 + [1]), (5.0, [1] * 11)])
def test_rows_go_in_batches_that_fit_and_do_not_last_long(
    zoo: Zoo, store: JobStore, seconds: float, sizes: list[int]
) -> None:
    """By what a row takes; whoever cancels or stops waits for one of them at most."""
    runner, seen = make_runner(store, zoo.root), []

    def run_model(feeds: dict[str, Any]) -> Any:
        seen.append(len(feeds["x"]))
        return [feeds["x"] * 2]

    with_model(runner, run_model, seconds)
    stored = submit(store, lines(ROWS), **of(zoo.scale()))
    assert run(runner, stored).status == "succeeded"
    assert seen == sizes
    assert results(stored) == DOUBLED


def test_a_row_that_takes_too_long_is_an_error_and_spoils_no_other(zoo: Zoo, store: JobStore) -> None:
    runner = make_runner(store, zoo.root)

    def run_model(feeds: dict[str, Any]) -> Any:
        if 7 in feeds["x"][:, 0]:
            raise DeadlineExceeded("model scale: stopped at the deadline")
        return [feeds["x"] * 2]

    with_model(runner, run_model)
    stored = submit(store, lines(ROWS), **of(zoo.scale()))
    assert run(runner, stored).errors == 1
    assert results(stored)[7] == {"index": 7, "error": "model scale: stopped at the deadline"}


# Whoever works on it stops or dies.


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_who_is_to_stop_leaves_the_rest_to_the_next_at_no_cost(zoo: Zoo, store: JobStore, batch: int) -> None:
    """That is no attempt; no row is lost or doubled."""
    calls: list[None] = []
    stopping = make_runner(store, zoo.root, lambda: calls.append(None) is None and len(calls) >= batch)
    stored = submit(store, lines(ROWS), **of(zoo.scale()))
    state = run(stopping, stored)
    assert (state.status, state.attempts, state.done) == ("queued", 0, 4 * (batch - 1))
    assert 0 < state.not_before <= time.time(), "it is due, and housekeeping sees that nobody has it"
    state = run(make_runner(store, zoo.root), stored)
    assert (state.status, state.attempts, state.done) == ("succeeded", 1, 11)
    assert results(stored) == DOUBLED


def test_one_may_be_stopped_as_often_as_one_likes(zoo: Zoo, store: JobStore) -> None:
    stored = submit(store, lines(ROWS), **of(zoo.scale()))
    for _ in range(2 * MAX_ATTEMPTS):
        assert run(make_runner(store, zoo.root, lambda: True), stored).status == "queued"
    assert run(make_runner(store, zoo.root), stored).status == "succeeded"


@pytest.mark.parametrize("torn", [b"", b"{", b'{"index":4,"predic', b'{"index":4,"prediction":[8.0,10.0,12.0]}'])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_who_dies_leaves_the_rest_to_the_next(zoo: Zoo, store: JobStore, batch: int, torn: bytes) -> None:
    """Whatever the line is that was half written: it is cut off, and its row predicted again."""
    stored = submit(store, lines(ROWS), **of(zoo.scale()))
    with pytest.raises(Killed):
        run(make_runner(store, zoo.root, beat=at(batch, die)), stored)
    assert (stored.state().status, stored.state().attempts) == ("running", 1)
    with stored.results.open("ab") as file:
        file.write(torn)
    state = run(make_runner(store, zoo.root), stored)
    assert (state.status, state.attempts, state.done) == ("succeeded", 2, 11)
    assert results(stored) == DOUBLED


def test_errors_are_counted_once_however_often_one_dies(zoo: Zoo, store: JobStore) -> None:
    rows = lines([[1, 2, 3], [1]] * 6)
    stored = submit(store, rows, **of(zoo.scale()))
    for batch in (2, 2):
        with pytest.raises(Killed):
            run(make_runner(store, zoo.root, beat=at(batch, die)), stored)
    state = run(make_runner(store, zoo.root), stored)
    assert (state.status, state.done, state.errors) == ("succeeded", 12, 6)


def test_a_job_that_kills_whoever_works_on_it_is_parked(zoo: Zoo, store: JobStore) -> None:
    """After so many attempts; what it has by then it keeps, but for half a line."""
    stored = submit(store, lines(ROWS), **of(zoo.scale()))
    for attempt in range(1, MAX_ATTEMPTS + 1):
        with pytest.raises(Killed):
            run(make_runner(store, zoo.root, beat=at(2 if attempt == 1 else 1, die)), stored)
        assert stored.state().attempts == attempt
    with stored.results.open("ab") as file:
        file.write(b'{"index":4,')
    state = run(make_runner(store, zoo.root, beat=die), stored)
    assert (state.status, state.done) == ("failed", 4)
    assert state.reason == f"given up after {MAX_ATTEMPTS} attempts: the worker died"
    assert results(stored) == DOUBLED[:4]


def test_a_fault_that_is_not_the_jobs_own_is_tried_again_later_each_time(
    zoo: Zoo, store: JobStore, clock: Clock
) -> None:
    """And not before; in the end it is parked with the reason."""
    runner, tried = make_runner(store, zoo.root), []

    def run_model(feeds: dict[str, Any]) -> Any:
        tried.append(None)
        raise OSError("the disk is full")

    with_model(runner, run_model)
    stored = submit(store, lines(ROWS), **of(zoo.scale()))
    for attempt, wait in enumerate(BACKOFF_SECONDS, 1):
        state = run(runner, stored)
        assert (state.status, state.attempts, state.reason) == ("queued", attempt, "the disk is full")
        assert state.not_before == pytest.approx(clock.now + wait)
        clock.now += wait - 0.1
        assert run(runner, stored) == state, "it is not due"
        assert len(tried) == attempt
        clock.now += 0.2
    state = run(runner, stored)
    assert state.status == "failed"
    assert state.reason == f"given up after {MAX_ATTEMPTS} attempts: the disk is full"
    assert len(tried) == MAX_ATTEMPTS == len(BACKOFF_SECONDS) + 1


def test_after_a_fault_it_goes_on_where_it_was(zoo: Zoo, store: JobStore, clock: Clock) -> None:
    runner, faults = make_runner(store, zoo.root), [OSError("no memory")]

    def run_model(feeds: dict[str, Any]) -> Any:
        if 8 in feeds["x"][:, 0] and faults:
            raise faults.pop()
        return [feeds["x"] * 2]

    with_model(runner, run_model)
    stored = submit(store, lines(ROWS), **of(zoo.scale()))
    assert run(runner, stored).done == 8
    clock.now += 60
    state = run(runner, stored)
    assert (state.status, state.done, state.reason) == ("succeeded", 11, "")
    assert results(stored) == DOUBLED


# Cancelling.


def test_one_that_is_cancelled_before_it_begins_does_not(zoo: Zoo, store: JobStore) -> None:
    stored = submit(store, lines(ROWS), **of(zoo.scale()))
    (stored.folder / "cancelled").touch()
    state = run(make_runner(store, zoo.root, beat=die), stored)
    assert (state.status, state.done, state.attempts) == ("cancelled", 0, 0)


@pytest.mark.parametrize("batch", [1, 2])
def test_one_that_is_cancelled_ends_after_the_batch(zoo: Zoo, store: JobStore, batch: int) -> None:
    """With the results that it has."""
    stored = submit(store, lines(ROWS), **of(zoo.scale()))
    state = run(make_runner(store, zoo.root, beat=at(batch, stored.cancel)), stored)
    assert (state.status, state.done) == ("cancelled", 4 * batch)
    assert results(stored) == DOUBLED[: 4 * batch]


def test_one_that_is_cancelled_while_it_waits_for_its_next_attempt_ends(zoo: Zoo, store: JobStore) -> None:
    stored = submit(store, lines(ROWS), **of(zoo.scale()))
    stored.write_state(State("queued", attempts=1, not_before=time.time() + 60))
    stored.cancel()
    assert run(make_runner(store, zoo.root, beat=die), stored).status == "cancelled"


# Nothing to do.


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_one_that_has_ended_is_not_worked_on(zoo: Zoo, store: JobStore, status: Any) -> None:
    """The queue may have it twice."""
    stored = submit(store, lines(ROWS), **of(zoo.scale()))
    stored.write_state(State(status, ended=1.0))
    assert run(make_runner(store, zoo.root, beat=die), stored) == State(status, ended=1.0)


def test_one_that_another_works_on_is_left_to_it(zoo: Zoo, store: JobStore) -> None:
    stored = submit(store, lines(ROWS), **of(zoo.scale()))
    with stored.locked():
        assert run(make_runner(store, zoo.root, beat=die), stored) == State()


@pytest.mark.parametrize("job_id", ["018bcfe56800-5312f0fede552f48", "..", "no job"])
def test_one_that_has_been_removed_is_no_fault(zoo: Zoo, store: JobStore, job_id: str) -> None:
    make_runner(store, zoo.root).run("anna", job_id)


# The version that it was accepted for.


def test_it_runs_on_the_version_that_was_served_when_it_was_accepted(zoo: Zoo, store: JobStore) -> None:
    """Whichever have come since; a job that is newer runs on theirs."""
    old = of(zoo.scale(version=1, factor=2))
    new = of(zoo.scale(version=2, factor=3))
    runner = make_runner(store, zoo.root)
    found = []
    for wanted in (old, new, old):
        stored = submit(store, lines([[1, 1, 1]]), **wanted)
        run(runner, stored)
        found += [each["prediction"][0] for each in results(stored)]
    assert found == [2, 3, 2]


def test_a_version_that_is_gone_is_said_so(zoo: Zoo, store: JobStore) -> None:
    """At once: to try again would not bring it back."""
    folder = zoo.scale(version=1)
    wanted = of(folder)
    zoo.scale(version=2)
    shutil.rmtree(folder)
    state = run(make_runner(store, zoo.root), submit(store, lines(ROWS), **wanted))
    assert (state.status, state.attempts) == ("failed", 1)
    assert state.reason == "model 'scale': expected one of the versions ['2'], got 1"


def test_a_version_that_is_another_by_now_is_said_so(zoo: Zoo, store: JobStore) -> None:
    """Its results would not be those that were asked for."""
    folder = zoo.scale()
    wanted = of(folder)
    edit_manifest(folder, description="another")
    state = run(make_runner(store, zoo.root), submit(store, lines(ROWS), **wanted))
    assert state.status == "failed"
    assert state.reason == "model scale: expected version 1 as it was when the job was accepted, got another package"


def test_a_package_that_is_damaged_is_said_so(zoo: Zoo, store: JobStore) -> None:
    folder = zoo.scale()
    wanted = of(folder)
    (folder / "model.onnx").write_bytes(b"garbage")
    state = run(make_runner(store, zoo.root), submit(store, lines(ROWS), **wanted))
    assert state.status == "failed"
    assert "model.onnx" in state.reason


def test_models_stay_loaded_between_jobs_as_many_as_fit(zoo: Zoo, store: JobStore) -> None:
    """A job loads none that one of the last few has used."""
    names = ["a", "b", "c", "d"]
    jobs = {name: of(zoo.scale(name)) for name in names}
    runner = make_runner(store, zoo.root)
    load, loaded = runner._models._load, []
    runner._models._load = lambda package: (loaded.append(package.manifest.name), load(package))[1]  # type: ignore[func-returns-value]
    for name in ("a", "b", "c", "a", "d", "a", "c", "b"):
        assert run(runner, submit(store, lines(ROWS), **jobs[name])).status == "succeeded"
    assert loaded == ["a", "b", "c", "d", "b"]


# Progress.


def test_how_far_it_is_can_be_seen_from_time_to_time(zoo: Zoo, store: JobStore, clock: Clock) -> None:
    """Not after each batch, which would cost more than the batch."""
    stored, seen = submit(store, lines(ROWS), **of(zoo.scale())), []

    def beat() -> None:
        seen.append(stored.state().done)
        clock.now += 0.3

    run(make_runner(store, zoo.root, beat=beat), stored)
    assert seen == [0, 0, 8]
    assert stored.state().done == 11
