import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from servers import wait_until

from inference_core.errors import DeadlineExceeded
from inference_core.watchdog import EXIT_STATUS, InFlight, Watchdog

GRACE = 1.0


class Ends:
    """Stands in for the end of the process, and for the answers in a request's stead."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.abandoned: dict[str, bool] = {}

    def process(self, status: int) -> None:
        self.statuses.append(status)

    def abandon(self, name: str) -> Callable[[bool], None]:
        def remember(hung: bool) -> None:
            assert name not in self.abandoned, "answered twice"
            assert not self.statuses, "answered after the end"
            self.abandoned[name] = hung

        return remember


@pytest.fixture
def ends() -> Ends:
    return Ends()


@pytest.fixture
def watchdog(ends: Ends) -> Watchdog:
    return Watchdog(GRACE, ends.process)


def test_an_inference_in_time_is_let_be(watchdog: Watchdog, ends: Ends) -> None:
    """Nothing happens before the deadline."""
    with watchdog.watch(100, ends.abandon("a")) as call:
        watchdog.check(99.9)
    assert not call.options.terminate
    assert (ends.statuses, ends.abandoned) == ([], {})


def test_an_inference_is_told_to_stop_at_its_deadline(watchdog: Watchdog, ends: Ends) -> None:
    """At its deadline it is told, the others are not, and nobody is given up within the grace."""
    with watchdog.watch(100, ends.abandon("a")) as late, watchdog.watch(200, ends.abandon("b")) as other:
        watchdog.check(100)
        assert (late.options.terminate, other.options.terminate) == (True, False)
        watchdog.check(100 + GRACE - 0.1)
    assert (ends.statuses, ends.abandoned) == ([], {})


def test_a_hung_inference_ends_the_process(watchdog: Watchdog, ends: Ends) -> None:
    """After the grace all are answered, the hung ones and the others each with their own, and the process ends once."""
    with (
        watchdog.watch(100, ends.abandon("hung")),
        watchdog.watch(100.5, ends.abandon("late")),
        watchdog.watch(200, ends.abandon("innocent")),
    ):
        watchdog.check(100 + GRACE)
    assert ends.abandoned == {"hung": True, "late": False, "innocent": False}
    assert ends.statuses == [EXIT_STATUS]


def test_the_stacks_of_a_process_that_hangs_are_written() -> None:
    """In one of its own: of more than a hundred threads, as these tests may have, the oldest are left out."""
    program = """
import time
from inference_core.watchdog import Watchdog

def hang():
    with watchdog.watch(time.monotonic(), lambda hung: None):
        while True:
            time.sleep(1)

watchdog = Watchdog(grace=0.01)
watchdog.start()
hang()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == EXIT_STATUS
    assert "in hang" in done.stderr


def test_an_answer_that_fails_keeps_none_from_the_others(watchdog: Watchdog, ends: Ends) -> None:
    """Whatever goes wrong with one connection, the others are answered and the process ends."""

    def fail(hung: bool) -> None:
        raise KeyError("no such connection")

    with watchdog.watch(100, fail), watchdog.watch(100, ends.abandon("a")), watchdog.watch(100, fail):
        watchdog.check(100 + GRACE)
    assert ends.abandoned == {"a": True}
    assert ends.statuses == [EXIT_STATUS]


def test_what_has_ended_is_not_watched(watchdog: Watchdog, ends: Ends) -> None:
    """A request that is over, also with an error, is nobody's business."""
    with pytest.raises(ZeroDivisionError), watchdog.watch(100, ends.abandon("a")):
        raise ZeroDivisionError
    watchdog.check(1000)
    assert (ends.statuses, ends.abandoned, watchdog.in_flight) == ([], {}, set())


def far(watchdog: Watchdog, seconds: float) -> InFlight:
    """A call whose deadline is `seconds` from now, by the real clock."""
    return watchdog.watch(time.monotonic() + seconds, lambda hung: None)


def test_a_deadline_is_only_brought_forward(watchdog: Watchdog) -> None:
    """A client can ask for less time than the server allows, not for more."""
    call = far(watchdog, 1000)
    before = call.deadline
    call.shorten(2000)
    assert call.deadline == before
    call.shorten(10)
    assert 0 < call.remaining() <= 10


def test_decoding_is_over_at_the_deadline(watchdog: Watchdog) -> None:
    """Long work that looks at the deadline between its steps stops there."""
    far(watchdog, 1000).check()
    with pytest.raises(DeadlineExceeded):
        far(watchdog, 0).check()


def test_the_watchdog_looks_by_itself(watchdog: Watchdog, ends: Ends) -> None:
    """Once started it needs nobody to call it."""
    watchdog.start()
    with far(watchdog, 0.3) as first, far(watchdog, 1000) as last:
        wait_until(lambda: first.options.terminate, "the call is told to stop")
        last.shorten(0.05)
        wait_until(lambda: last.options.terminate, "the call is told to stop once its time was cut")
    assert ends.statuses == []
