"""Where threads share a process (gthread): who has the next turn, and who is taken along.

One inference at a time, as everywhere. For models whose policy says `batching = "auto"`, and which gain by it,
predictions that wait for the same turn are run as one. Nobody waits for company: who has the turn takes along those who
wait already and ask the same model for the same outputs of inputs of the same types and shapes, as many rows as the
model takes.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from inference_core.cache import Answer, Feeds, Question
from inference_core.errors import DeadlineExceeded, TiercelError
from inference_core.model import Model, RunOptions, example
from inference_core.watchdog import InFlight

# With so many rows it is measured what a model gains; it must save this much of each, or threads take more to meet.
ROWS, RUNS = 4, 3
MIN_SAVED_SECONDS, MIN_SAVED_SHARE = 100e-6, 0.15


class Kind(NamedTuple):
    """What can be run as one."""

    model: int
    outputs: tuple[str, ...] | None
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]


class Ran(NamedTuple):
    """An answer, the seconds that its inference took, and how many share it."""

    answer: Answer
    seconds: float
    shared_by: int


class Member:
    """A prediction that waits for its turn."""

    def __init__(self, question: Question, feeds: Feeds, call: InFlight) -> None:
        self.question = question
        self.feeds = feeds
        self.call = call
        self.rows = len(next(iter(feeds.values())))
        self.kind = Kind(
            id(question.model),
            None if question.outputs is None else tuple(question.outputs),
            tuple((name, tensor.dtype.str, tensor.shape[1:]) for name, tensor in sorted(feeds.items())),
        )
        # One of those that it was run with may have spoiled it for all.
        self.alone = not (question.model.gains and question.model.policy.batching == "auto")
        self.ran: Ran | None = None

    def run(self) -> Ran:
        began = time.perf_counter()
        answer = self.question.model.run(self.feeds, self.question.outputs, self.call.options)
        return Ran(answer, time.perf_counter() - began, 1)


class Turns:
    """Whose turn it is. Who is answered while they wait need none."""

    def __init__(self) -> None:
        self._waiting: list[Member] = []
        self._is_taken = False
        self._changed = threading.Condition()

    def run(self, question: Question, feeds: Feeds, call: InFlight) -> Ran:
        """DeadlineExceeded if the deadline passes before its turn comes."""
        member = Member(question, feeds, call)
        with self._changed:
            self._waiting.append(member)
            try:
                self._wait(member)
            finally:
                self._waiting.remove(member)
            if member.ran:
                return member.ran
            batch = self._batch_of(member)
            self._is_taken = True
        try:
            if len(batch) > 1:
                _run_as_one(batch)
            return member.ran or member.run()
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()

    def _wait(self, member: Member) -> None:
        name, call = member.question.model.manifest.name, member.call
        while self._is_taken and not member.ran:
            if not self._changed.wait(max(0.0, call.remaining())) and call.remaining() <= 0:
                raise DeadlineExceeded(f"model {name}: its deadline passed while others were served")
        if not member.ran and call.remaining() <= 0:
            raise DeadlineExceeded(f"model {name}: its deadline passed before it could be served")

    def _batch_of(self, first: Member) -> list[Member]:
        """With those that can be run with it, but for whom, or with whom, it would get too late."""
        batch, rows, model, soonest = [first], first.rows, first.question.model, first.call.remaining()
        if first.alone:
            return batch
        for each in self._waiting:
            if each.kind != first.kind or each.alone or each.ran or rows + each.rows > model.manifest.max_batch_size:
                continue
            earlier = min(soonest, each.call.remaining())
            if (rows + each.rows) * model.seconds < earlier:
                batch.append(each)
                rows, soonest = rows + each.rows, earlier
        return batch


def gains(model: Model, clock: Callable[[], float] = time.perf_counter) -> bool:
    """Whether rows that are run as one take clearly less time, as measured now."""
    rows = min(ROWS, model.manifest.max_batch_size)
    if rows < ROWS:
        return False
    one = {spec.name: example(spec) for spec in model.manifest.inputs}
    many = {name: np.repeat(tensor, rows, axis=0) for name, tensor in one.items()}
    try:
        if any(len(array) != rows for array in model.run(many, None, RunOptions())):
            return False
        alone, together = (_seconds(model, feeds, clock) for feeds in (one, many))
    except TiercelError:
        return False
    saved = alone - together / rows
    return saved >= max(MIN_SAVED_SECONDS, MIN_SAVED_SHARE * alone)


def _seconds(model: Model, feeds: Feeds, clock: Callable[[], float]) -> float:
    """The best of several runs, after one that finds memory."""
    model.run(feeds, None, RunOptions())
    times = []
    for _ in range(RUNS):
        began = clock()
        model.run(feeds, None, RunOptions())
        times.append(clock() - began)
    return min(times)


def _run_as_one(batch: list[Member]) -> None:
    """Each has its answer then, or is to be run alone."""
    first, rows = batch[0], sum(each.rows for each in batch)
    feeds = {name: np.concatenate([each.feeds[name] for each in batch]) for name in first.feeds}
    began = time.perf_counter()
    try:
        arrays = first.question.model.run(feeds, first.question.outputs, first.call.options)
    except TiercelError:
        arrays = []
    seconds, start = time.perf_counter() - began, 0
    if not arrays or any(len(array) != rows for array in arrays):
        for each in batch:
            each.alone = True
        return
    for each in batch:
        each.ran = Ran([array[start : start + each.rows].copy() for array in arrays], seconds, len(batch))
        start += each.rows
