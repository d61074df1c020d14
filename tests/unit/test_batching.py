"""Predictions as one: who has the turn takes along who waits. Turns are given by the tests."""

from typing import Any, cast

import numpy as np
import pytest
from builders import manifest, tensor

from inference_core.batching import MIN_SAVED_SECONDS, MIN_SAVED_SHARE, ROWS, Batches, Member, gains
from inference_core.cache import Question
from inference_core.errors import DeadlineExceeded, InferenceFailed, InvalidInput
from inference_core.manifest import Manifest
from inference_core.model import Model, RunOptions
from inference_core.tensors import Tensor
from inference_core.watchdog import InFlight

SPOILED = -1.0


class FakeModel:
    """Doubles; refuses whatever has SPOILED in it. Each run takes `alone` seconds, and `more` for each further row."""

    def __init__(self, manifest: Manifest, alone: float = 0.0, more: float = 0.0) -> None:
        self.manifest = manifest
        self.seconds = 0.0
        self.now = 0.0
        self.sizes: list[int] = []
        self._alone, self._more = alone, more

    def run(self, feeds: dict[str, Tensor], outputs: list[str] | None, options: RunOptions) -> list[Tensor]:
        [x] = feeds.values()
        self.sizes.append(len(x))
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


class Stage:
    def __init__(self, rows: int = 8) -> None:
        self.model = FakeModel(manifest([tensor("FP32", -1, 2)], rows=rows))
        self.batches = Batches()

    def waits(
        self,
        *values: float,
        width: int = 2,
        dtype: Any = np.float32,
        outputs: list[str] | None = None,
        seconds: float = 20,
        model: FakeModel | None = None,
    ) -> Member:
        """A row of each value."""
        x = np.repeat(np.array(values, dtype)[:, None], width, axis=1)
        question = Question(cast(Model, model or self.model), lambda: {"x": x}, outputs)
        return self.batches.join(question, {"x": x}, cast(InFlight, FakeCall(seconds)))


def firsts(member: Member) -> list[float]:
    """The first number of each row of its answer."""
    return [float(row[0]) for row in member.run()[0]]


def test_who_is_alone_is_run_as_it_is() -> None:
    """With its own arrays, at once."""
    stage = Stage()
    member = stage.waits(1, 2)
    assert firsts(member) == [2, 4]
    assert stage.model.sizes == [2]
    assert member.shared_by == 1


def test_those_who_wait_are_run_as_one_and_have_their_own_rows() -> None:
    """One, three and two rows; whose turn comes later finds its answer."""
    stage = Stage()
    members = [stage.waits(1), stage.waits(2, 3, 4), stage.waits(5, 6)]
    assert [firsts(member) for member in members] == [[2], [4, 6, 8], [10, 12]]
    assert stage.model.sizes == [6]
    assert {(member.shared_by, member.ran) for member in members} == {(3, members[0].ran)}


@pytest.mark.parametrize(("rows", "sizes"), [(4, [4]), (3, [2, 2])])
def test_as_many_rows_as_the_model_takes(rows: int, sizes: list[int]) -> None:
    """One more waits for its own turn."""
    stage = Stage(rows)
    members = [stage.waits(1, 2), stage.waits(3, 4)]
    assert [firsts(member) for member in members] == [[2, 4], [6, 8]]
    assert stage.model.sizes == sizes


def test_who_asks_something_else_is_not_taken_along() -> None:
    """Another model, another type, another shape, other outputs."""
    stage = Stage()
    first = stage.waits(1)
    stage.waits(1, model=FakeModel(stage.model.manifest))
    stage.waits(1, dtype=np.float64)
    stage.waits(1, width=3)
    stage.waits(1, outputs=["y"])
    alike = stage.waits(9)
    first.run()
    assert stage.model.sizes == [2]
    assert alike.answer is not None


def test_one_that_is_spoiled_spoils_no_other() -> None:
    """All are run again by themselves, each in its turn, and have what is theirs."""
    stage = Stage()
    members = [stage.waits(1), stage.waits(SPOILED), stage.waits(3)]
    assert firsts(members[0]) == [2]
    with pytest.raises(InvalidInput):
        members[1].run()
    assert firsts(members[2]) == [6]
    assert stage.model.sizes == [3, 1, 1, 1]


def test_who_has_left_is_not_taken_along() -> None:
    """As its deadline has passed while it waited."""
    stage = Stage()
    first, gone = stage.waits(1), stage.waits(2)
    gone.leave()
    first.run()
    assert stage.model.sizes == [1]
    first.leave()
    assert stage.waits(3).run()
    assert stage.model.sizes == [1, 1]


@pytest.mark.parametrize(("first", "other", "together"), [(3, 3, True), (2, 3, False), (3, 2, False)])
def test_nobody_is_made_late(first: float, other: float, together: bool) -> None:
    """Two rows take two seconds: both must have more."""
    stage = Stage()
    stage.model.seconds = 1.0
    member = stage.waits(1, seconds=first)
    stage.waits(2, seconds=other)
    member.run()
    assert stage.model.sizes == [2 if together else 1]


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
