import time

import pytest

from inference_api.admission import FLOOR, Admission, age, is_background, is_exempt


def worker(seconds: float, max_wait: float = 0.1) -> Admission:
    """One whose requests take `seconds` each."""
    admission = Admission(max_wait)
    for _ in range(500):
        admission.served(seconds)
    return admission


@pytest.mark.parametrize(("seconds", "room"), [(0.001, 100), (0.005, 20), (0.02, 5), (1.0, FLOOR)])
def test_the_queue_is_as_long_as_can_be_served_in_time(seconds: float, room: int) -> None:
    """Little's law, and never less than the floor."""
    admission = worker(seconds * 1.0001)
    assert admission.has_room(room - 1, background=False, age=0)
    assert not admission.has_room(room, background=False, age=0)


def test_what_is_in_the_background_has_half_of_it() -> None:
    admission = worker(0.0050005)
    assert admission.has_room(9, background=True, age=0)
    assert not admission.has_room(10, background=True, age=0)
    assert admission.has_room(10, background=False, age=0)


def test_who_has_waited_elsewhere_has_less_time_left() -> None:
    admission = worker(0.0050005)
    assert admission.has_room(9, background=False, age=0.05)
    assert not admission.has_room(10, background=False, age=0.05)
    assert admission.has_room(FLOOR - 1, background=False, age=0.1)
    assert not admission.has_room(0, background=False, age=0.1001)


@pytest.mark.parametrize(
    ("waited", "busy", "late"),
    [
        (0.06, 0.06, True),
        (0.04, 10.0, False),
        # After a time without anybody to serve it, as when an API container is replaced.
        (10.0, 0.04, False),
    ],
)
def test_a_queue_is_long_when_requests_wait_for_us(waited: float, busy: float, late: bool) -> None:
    assert Admission(0.1).is_late(waited, busy) is late


def test_the_age_is_what_nginx_stamped() -> None:
    assert age({"HTTP_X_REQUEST_START": f"t={time.time() - 3:.3f}"}) == pytest.approx(3, abs=1)


@pytest.mark.parametrize("stamp", [None, "", "t=", "t=x", "1795518240", f"t={time.time() + 3600}", "t=nan"])
def test_a_stamp_that_is_none_is_no_age(stamp: str | None) -> None:
    """Nor is one of the future: clocks differ."""
    assert age({} if stamp is None else {"HTTP_X_REQUEST_START": stamp}) == 0


@pytest.mark.parametrize(
    ("priority", "background"),
    [
        (None, False), ("", False), ("u=3", False), ("u=4, i", False), ("u=5", True), ("u=7", True), ("i, u=6", True),
        ("u=9", False), ("nu=7", False), ("u=a", False),
    ],
)  # fmt: skip
def test_who_has_time_says_so_as_in_rfc_9218(priority: str | None, background: bool) -> None:
    assert is_background({} if priority is None else {"HTTP_PRIORITY": priority}) is background


@pytest.mark.parametrize(
    ("path", "exempt"), [("/v2/health/live", True), ("/metrics", True), ("/v2/healthy", False), ("/v1/models", False)]
)
def test_who_asks_for_our_health_is_always_answered(path: str, exempt: bool) -> None:
    assert is_exempt({"PATH_INFO": path}) is exempt
