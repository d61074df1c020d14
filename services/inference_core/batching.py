"""Predictions that wait for the same turn are run as one, where that is worth it.

Only where threads share a process (gthread), and for models whose policy says `batching = "auto"`. Nobody waits for
company: who has the turn takes along those who wait already and ask the same model for the same outputs of inputs of
the same types and shapes, as many rows as the model takes.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from inference_core.cache import Answer, Feeds, Question
from inference_core.errors import TiercelError
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


class Member:
    """A prediction that waits for its turn, from now on. It `ran` for seconds, which so many share."""

    def __init__(self, batches: "Batches", question: Question, feeds: Feeds, call: InFlight) -> None:
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
        self.alone = False
        self.answer: Answer | None = None
        self.ran = 0.0
        self.shared_by = 1
        self._batches = batches

    def run(self) -> Answer:
        """Call it when its turn has come: the answer, which may be there already."""
        if self.answer is None:
            batch = self._batches.batch_of(self)
            if len(batch) > 1:
                _run_as_one(batch)
        if self.answer is None:
            began = time.perf_counter()
            self.answer = self.question.model.run(self.feeds, self.question.outputs, self.call.options)
            self.ran = time.perf_counter() - began
        return self.answer

    def leave(self) -> None:
        """It waits no longer, whatever has come of it."""
        self._batches.forget(self)


class Batches:
    def __init__(self) -> None:
        self._waiting: list[Member] = []
        self._lock = threading.Lock()

    def join(self, question: Question, feeds: Feeds, call: InFlight) -> Member:
        member = Member(self, question, feeds, call)
        with self._lock:
            self._waiting.append(member)
        return member

    def forget(self, member: Member) -> None:
        with self._lock:
            self._waiting.remove(member)

    def batch_of(self, first: Member) -> list[Member]:
        """With those that can be run with it, but for whom, or with whom, it would get too late."""
        batch, rows, model = [first], first.rows, first.question.model
        with self._lock:
            alike = [each for each in self._waiting if each.kind == first.kind and each is not first]
        for each in alike:
            seconds = (rows + each.rows) * model.seconds
            in_time = seconds < min(first.call.remaining(), each.call.remaining())
            fits = rows + each.rows <= model.manifest.max_batch_size
            if fits and in_time and each.answer is None and not (first.alone or each.alone):
                batch.append(each)
                rows += each.rows
        return batch


def gains(model: Model, clock: Callable[[], float] = time.perf_counter) -> bool:
    """Whether rows that are run as one take clearly less time, as measured now."""
    rows = min(ROWS, model.manifest.max_batch_size)
    if rows < ROWS:
        return False
    one = {spec.name: example(spec) for spec in model.manifest.inputs}
    many = {name: np.repeat(tensor, rows, axis=0) for name, tensor in one.items()}
    try:
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
    first = batch[0]
    feeds = {name: np.concatenate([each.feeds[name] for each in batch]) for name in first.feeds}
    began = time.perf_counter()
    try:
        arrays = first.question.model.run(feeds, first.question.outputs, first.call.options)
    except TiercelError:
        for each in batch:
            each.alone = True
        return
    ran, start = time.perf_counter() - began, 0
    for each in batch:
        each.ran, each.shared_by = ran, len(batch)
        each.answer = [array[start : start + each.rows].copy() for array in arrays]
        start += each.rows
