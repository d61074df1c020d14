"""Turns, with threads that wait for each other: who has the turn takes along who waits."""

import threading
from typing import Any, cast

import numpy as np
import pytest
from builders import manifest, tensor
from servers import wait_until

from inference_core.batching import MIN_SAVED_SECONDS, MIN_SAVED_SHARE, ROWS, Ran, Turns, gains
from inference_core.cache import Question
from inference_core.errors import DeadlineExceeded, InferenceFailed, InvalidInput
from inference_core.manifest import Manifest
from inference_core.model import Model, RunOptions
from inference_core.policy import Policy
from inference_core.tensors import Tensor
from inference_core.watchdog import InFlight

SPOILED = -1.0


class FakeModel:
    """Doubles; refuses whatever has SPOILED in it. Each run takes `alone` seconds, and `more` for each further row."""

    def __init__(self, manifest: Manifest, alone: float = 0.0, more: float = 0.0) -> None:
        self.manifest = manifest
        self.policy = Policy(batching="auto")
        self.gains = True
        self.seconds = 0.0
        self.now = 0.0
        self.sizes: list[int] = []
        self.resume = threading.Event()
        self.resume.set()
        self.at_once = self.most_at_once = 0
        self._alone, self._more = alone, more

    def run(self, feeds: dict[str, Tensor], outputs: list[str] | None, options: RunOptions) -> list[Tensor]:
        [x] = feeds.values()
        self.sizes.append(len(x))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.resume.wait(20)
        self.at_once -= 1
        self.now += self._alone + self._more * (len(x) - 1)
        if (x == SPOILED).any():
            raise InvalidInput("spoiled")
        return [x * 2] * len(outputs or ["y"])


class FakeCall:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.options = RunOptions()

    def remaining(self) -> float:
        return self.seconds


class Asked:
    """A prediction in a thread of its own: a row of each value."""

    def __init__(self, turns: Turns, model: FakeModel, values: tuple[float, ...], **more: Any) -> None:
        self._x = np.repeat(np.array(values, more.get("dtype", np.float32))[:, None], more.get("width", 2), axis=1)
        self._question = Question(cast(Model, model), lambda: {"x": self._x}, more.get("outputs"))
        self.call = FakeCall(more.get("seconds", 20))
        self._turns = turns
        self.ran: Ran | None = None
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.ran = self._turns.run(self._question, {"x": self._x}, cast(InFlight, self.call))
        except Exception as error:
            self.error = error

    def firsts(self) -> list[float]:
        """The first number of each row of its answer."""
        self.thread.join(20)
        assert self.ran, self.error
        return [float(row[0]) for row in self.ran.answer[0]]


class Stage:
    """The model is busy with a row of another kind, until it `goes_on`; who asks meanwhile waits, in order."""

    def __init__(self, rows: int = 8) -> None:
        self.model = FakeModel(manifest([tensor("FP32", -1, 2)], rows=rows))
        self.turns = Turns()
        self.model.resume.clear()
        self.first = Asked(self.turns, self.model, (0,), width=1)
        wait_until(lambda: self.model.sizes, "it is busy")
        self.asked: list[Asked] = []

    def ask(self, *values: float, model: FakeModel | None = None, **more: Any) -> Asked:
        asked = Asked(self.turns, model or self.model, values, **more)
        self.asked.append(asked)
        wait_until(lambda: len(self.turns._waiting) == len(self.asked), "it waits")
        return asked

    def goes_on(self) -> list[int]:
        """The rows of each run, once all have ended."""
        self.model.resume.set()
        for asked in (self.first, *self.asked):
            asked.thread.join(20)
        assert self.turns._waiting == []
        assert self.model.most_at_once == 1
        return self.model.sizes[1:]


def test_who_is_alone_is_run_at_once() -> None:
    """With its own arrays."""
    model = FakeModel(manifest([tensor("FP32", -1, 2)]))
    asked = Asked(Turns(), model, (1, 2))
    assert asked.firsts() == [2, 4]
    assert asked.ran
    assert (model.sizes, asked.ran.shared_by) == ([2], 1)


def test_those_who_wait_are_run_as_one_and_have_their_own_rows() -> None:
    """One, three and two rows."""
    stage = Stage()
    asked = [stage.ask(1), stage.ask(2, 3, 4), stage.ask(5, 6)]
    assert stage.goes_on() == [6]
    assert [each.firsts() for each in asked] == [[2], [4, 6, 8], [10, 12]]
    assert {each.ran.shared_by for each in asked if each.ran} == {3}
    assert len({each.ran.seconds for each in asked if each.ran}) == 1


@pytest.mark.parametrize(("rows", "sizes"), [(4, [4]), (3, [2, 2])])
def test_as_many_rows_as_the_model_takes(rows: int, sizes: list[int]) -> None:
    """One more waits for its own turn."""
    stage = Stage(rows)
    asked = [stage.ask(1, 2), stage.ask(3, 4)]
    assert stage.goes_on() == sizes
    assert [each.firsts() for each in asked] == [[2, 4], [6, 8]]


def test_who_asks_something_else_is_not_taken_along() -> None:
    """Another model, another type, another shape, other outputs; those who are alike are."""
    stage = Stage()
    other = FakeModel(stage.model.manifest)
    kinds: list[dict[str, Any]] = [{"model": other}, {"dtype": np.float64}, {"width": 3}, {"outputs": ["y"]}]
    for more in kinds:
        stage.ask(1, **more)
    stage.ask(9)
    stage.ask(8)
    assert sorted(stage.goes_on()) == [1, 1, 1, 2]
    assert other.sizes == [1]


@pytest.mark.parametrize(("gain", "batching"), [(False, "auto"), (True, "off")])
def test_only_where_it_is_wanted_and_gains(gain: bool, batching: Any) -> None:
    """Else each has a turn."""
    stage = Stage()
    stage.model.gains, stage.model.policy = gain, Policy(batching=batching)
    stage.ask(1)
    stage.ask(2)
    assert stage.goes_on() == [1, 1]


def test_one_that_is_spoiled_spoils_no_other() -> None:
    """All are run again by themselves, each in its turn, and have what is theirs."""
    stage = Stage()
    asked = [stage.ask(1), stage.ask(SPOILED), stage.ask(3)]
    assert sorted(stage.goes_on()) == [1, 1, 1, 3]
    assert (asked[0].firsts(), asked[2].firsts()) == ([2], [6])
    assert isinstance(asked[1].error, InvalidInput)


def test_rows_that_become_others_are_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers several rows with one is asked by each alone."""
    stage = Stage()
    run = stage.model.run
    monkeypatch.setattr(stage.model, "run", lambda *args: [array.mean(axis=0)[None] for array in run(*args)])
    asked = [stage.ask(1), stage.ask(3)]
    assert stage.goes_on() == [2, 1, 1]
    assert [each.firsts() for each in asked] == [[2], [6]]


def test_who_is_answered_waits_for_no_other() -> None:
    """Its answer is there, and a slow model may have the next turn."""
    stage = Stage()
    slow = FakeModel(manifest([tensor("FP32", -1, 2)]))
    slow.resume.clear()
    together = [stage.ask(1), stage.ask(2)]
    last = stage.ask(3, model=slow)
    stage.model.resume.set()
    wait_until(lambda: slow.sizes, "the slow one is busy")
    while together[0].thread.is_alive() and together[1].thread.is_alive():  # unless the slow one came first
        together[0].thread.join(0.01)
        if not any(each.ran for each in together) and slow.sizes:
            slow.resume.set()
    assert sorted(each.firsts()[0] for each in together) == [2, 4]
    slow.resume.set()
    assert last.firsts() == [6]


def test_who_waits_too_long_leaves() -> None:
    """And is not taken along by others."""
    stage = Stage()
    late = Asked(stage.turns, stage.model, (1,), seconds=0)
    late.thread.join(20)
    assert isinstance(late.error, DeadlineExceeded)
    assert "while others were served" in str(late.error)
    stage.ask(2)
    assert stage.goes_on() == [1]


@pytest.mark.parametrize(
    ("seconds", "sizes"),
    [
        ([3, 3], [2]),  # two rows take two seconds: both have more
        ([2, 3], [1, 1]),
        ([3, 2], [1, 1]),
        ([5, 2.5, 9], [1, 2]),  # with a third it would be too late for the second
    ],
)
def test_nobody_is_made_late(seconds: list[float], sizes: list[int]) -> None:
    """A row takes a second, by what is known of the model."""
    stage = Stage()
    stage.model.seconds = 1.0
    for each in seconds:
        stage.ask(1, seconds=each)
    assert sorted(stage.goes_on()) == sizes


def test_who_comes_too_late_is_not_served() -> None:
    """Though it is its turn."""
    model = FakeModel(manifest([tensor("FP32", -1, 2)]))
    asked = Asked(Turns(), model, (1,), seconds=0)
    asked.thread.join(20)
    assert "before it could be served" in str(asked.error)
    assert model.sizes == []


def saves(alone: float, saved: float, rows: int = ROWS) -> bool:
    """Of a model that takes `alone` seconds for a row, and saves so many of each if there are several."""
    more = (ROWS * (alone - saved) - alone) / (ROWS - 1)
    model = FakeModel(manifest([tensor("FP32", -1, 2)], rows=rows), alone, more)
    return gains(cast(Model, model), lambda: model.now)


@pytest.mark.parametrize(
    ("alone", "saved", "gain"),
    [
        (10e-6, 9e-6, False),  # a small one saves much of next to nothing
        (MIN_SAVED_SECONDS, 0.99 * MIN_SAVED_SECONDS, False),
        (1.0, 1.01 * MIN_SAVED_SHARE, True),
        (1.0, 0.99 * MIN_SAVED_SHARE, False),
        (MIN_SAVED_SECONDS / MIN_SAVED_SHARE, 1.01 * MIN_SAVED_SECONDS, True),
        (1.0, -0.5, False),
    ],
)
def test_what_is_worth_it(alone: float, saved: float, gain: bool) -> None:
    """A share of what a row takes, and more than threads take to meet."""
    assert saves(alone, saved) is gain


def test_who_takes_few_rows_gains_nothing() -> None:
    """None at all, one, or fewer than it is measured with."""
    assert [saves(1.0, 0.5, rows) for rows in (0, 1, ROWS - 1, ROWS)] == [False, False, False, True]


def test_who_answers_many_rows_with_one_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However quick that is."""
    model = FakeModel(manifest([tensor("FP32", -1, 2)]), 1.0, 0.0)

    def clock() -> float:
        return model.now

    assert gains(cast(Model, model), clock)
    run = model.run
    monkeypatch.setattr(model, "run", lambda *args: [array[:1] for array in run(*args)])
    assert not gains(cast(Model, model), clock)


@pytest.mark.parametrize("error", [InferenceFailed("no"), DeadlineExceeded("late")])
def test_who_fails_with_several_rows_gains_nothing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they say of taking many."""
    model = FakeModel(manifest([tensor("FP32", -1, 2)]))
    run = model.run

    def fails(feeds: dict[str, Tensor], *others: Any) -> list[Tensor]:
        if len(feeds["x"]) > 1:
            raise error
        return run(feeds, *others)

    monkeypatch.setattr(model, "run", fails)
    assert not gains(cast(Model, model))
