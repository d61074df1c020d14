"""Deadlines that hold even when the runtime does not return: one thread per process watches what is in flight.

At its deadline an inference is told to stop (`RunOptions.terminate`), which ONNX Runtime obeys between two nodes of the
graph, PyTorch and LiteRT only when they are through. If it has not ended `grace` seconds later it is taken to hang: its
caller is answered, the stacks of all threads are written to standard error, and the process ends, for the arbiter to
start another in its place.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from inference_core.errors import DeadlineExceeded
from inference_core.model import RunOptions

# How long at least, and at most, between two looks.
TICK_SECONDS, LOOK_SECONDS = 0.01, 0.25
EXIT_STATUS = 70  # EX_SOFTWARE of sysexits(3)

log = structlog.get_logger()


class InFlight:
    """One request: its `deadline` on the monotonic clock, the options of its inference, and how to answer in its stead.

    `abandon(True)` answers for the request that hangs, `abandon(False)` for one that only shares its process.
    """

    __slots__ = ("_watchdog", "abandon", "deadline", "options")

    def __init__(self, watchdog: "Watchdog", deadline: float, abandon: Callable[[bool], None]) -> None:
        self._watchdog = watchdog
        self.deadline = deadline
        self.abandon = abandon
        self.options = RunOptions()

    def shorten(self, seconds: float) -> None:
        """Bring the deadline forward to `seconds` from now, if that is earlier."""
        self.deadline = min(self.deadline, time.monotonic() + seconds)
        self._watchdog.look_by(self.deadline)

    def remaining(self) -> float:
        return self.deadline - time.monotonic()

    def check(self) -> None:
        """Raise DeadlineExceeded if the deadline has passed; for long work to call between its steps."""
        if self.remaining() <= 0:
            raise DeadlineExceeded("request: its deadline passed while its input was decoded")

    def __enter__(self) -> Self:
        self._watchdog.in_flight.add(self)
        self._watchdog.look_by(self.deadline)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._watchdog.in_flight.discard(self)


class Watchdog:
    def __init__(self, grace: float, end_process: Callable[[int], None] = os._exit) -> None:
        self.in_flight: set[InFlight] = set()
        self._grace = grace
        self._end_process = end_process
        self._next_look = 0.0
        self._sooner = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._watch_for_ever, name="watchdog", daemon=True).start()

    def watch(self, deadline: float, abandon: Callable[[bool], None]) -> InFlight:
        """A context manager round the work that must end by `deadline`."""
        return InFlight(self, deadline, abandon)

    def look_by(self, deadline: float) -> None:
        """Have the thread look again by `deadline`. PERF: it wakes up seldom, as that interrupts a request."""
        if deadline < self._next_look:
            self._sooner.set()

    def check(self, now: float) -> None:
        calls = list(self.in_flight)
        for call in calls:
            if now >= call.deadline:
                call.options.terminate = True
        hung = [call for call in calls if now >= call.deadline + self._grace]
        if hung:
            self._give_up(calls, hung)

    def _give_up(self, calls: list[InFlight], hung: list[InFlight]) -> None:
        for call in calls:
            try:
                call.abandon(call in hung)
            except Exception:  # the others are still to be answered, and the process is still to end
                log.exception("a request could not be answered in the stead of its worker")
        log.critical("inference hangs: this worker is replaced", hung=len(hung), others=len(calls) - len(hung))
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        self._end_process(EXIT_STATUS)

    def _watch_for_ever(self) -> None:
        while True:
            now = time.monotonic()
            self.check(now)
            self._sooner.clear()
            self._next_look = now + LOOK_SECONDS
            # NOTE: in this order, whoever is not in the list yet will find the new time of the next look.
            earliest = min([call.deadline for call in list(self.in_flight)], default=self._next_look)
            self._sooner.wait(min(max(earliest - now, TICK_SECONDS), LOOK_SECONDS))
