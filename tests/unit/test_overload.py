import math
import sys
from pathlib import Path

import pytest

# No package: its modules import each other. Last, as tests/ has some of the same names.
sys.path.append(str(Path(__file__).parents[2] / "loadtest"))

import ladder
from outcomes import Answer, Outcome

IDLE = ladder.Usage(api=1.0, edge=0.25, generator=0.5, others=0.0)
STARTED = 1000.0


def outcome(*answers: tuple[int, float, float], late: float = 0.0) -> Outcome:
    """One whose answers have a status, were due so many seconds after its start, and took so long."""
    return Outcome(
        6.0,
        answers=[Answer(status, STARTED + due, seconds) for status, due, seconds in answers],
        started=STARTED,
        late=[late] * len(answers),
    )


def test_goodput_is_what_came_right_and_in_time_while_requests_came() -> None:
    """Neither refusals count, nor what is too slow, nor the queue that is left at the end."""
    step = ladder.step(1.0, 2.0, outcome((200, 0, 0.5), (200, 0, 1.5), (200, 1.9, 0.5), (503, 0, 0.1)), IDLE)
    assert (step.goodput, step.accepted, step.slow) == (0.5, 3, 1)
    assert step.offered == 2.0


def test_refusals_are_told_apart_by_status() -> None:
    step = ladder.step(1.0, 2.0, outcome((503, 0, 0.1), (503, 0, 0.1), (429, 0, 0.1), (200, 0, 0.1)), IDLE)
    assert (step.unavailable, step.too_many) == (2, 1)
    assert step.refusals == 1.5


def test_how_overload_is_noticed_is_told_apart_from_how_it_is_borne() -> None:
    step = ladder.step(5.0, 2.0, outcome((503, 0.5, 0.3), (503, 1.5, 0.002)), IDLE)
    assert (step.onset.p99, step.refused.p99) == (0.3, 0.002)
    assert math.isnan(step.latency.p50)


def test_a_step_does_not_count_if_requests_went_out_late() -> None:
    assert ladder.step(1.0, 2.0, outcome((200, 0, 0.1)), IDLE).counts
    assert not ladder.step(1.0, 2.0, outcome((200, 0, 0.1), late=0.02), IDLE).counts


@pytest.mark.parametrize(
    ("answers", "seconds"),
    [
        ([], 0.0),
        ([(503, 5.9, 0.1), (200, 6.1, 0.1)], 0.0),
        ([(503, 6.5, 0.1), (200, 6.6, 0.1)], 0.5),
        ([(200, 7.0, 2.0), (200, 7.5, 0.1)], 1.0),
    ],
)
def test_recovery_ends_with_the_last_request_that_had_no_good_answer(
    answers: list[tuple[int, float, float]], seconds: float
) -> None:
    assert ladder.recovery(outcome(*answers).answers, STARTED + 6.0) == pytest.approx(seconds)


def test_targets_say_how_far_they_were_met() -> None:
    good = [(200, moment / 10, 0.01) for moment in range(10)]
    steps = [
        ladder.step(1.0, 1.0, outcome(*good), IDLE),
        ladder.step(5.0, 1.0, outcome(*good[:8], (503, 1.0, 0.02)), IDLE),
    ]
    lines = ladder.verdicts(ladder.Ladder("edge", 10.0, steps, 0.5, 0, ""))
    assert [line.split()[0] for line in lines] == ["MISSED", "met", "MISSED", "met"]
    assert lines[0].endswith("80%")
    assert lines[2].endswith("20.0 ms")


def test_no_verdict_on_refusals_that_never_came() -> None:
    steps = [ladder.step(1.0, 2.0, outcome((200, 0, 0.1)), IDLE)]
    lines = ladder.verdicts(ladder.Ladder("edge", 10.0, steps, 0.0, 0, ""))
    assert not any("refusals" in line for line in lines)


def test_a_busy_machine_is_named() -> None:
    quiet, busy = (ladder.Usage(1.0, 0.25, 0.5, others) for others in (0.0, 0.5))
    for usage, noisy in ((quiet, False), (busy, True)):
        steps = [ladder.step(1.0, 2.0, outcome((200, 0, 0.1)), usage)]
        lines = ladder.verdicts(ladder.Ladder("edge", 10.0, steps, 0.0, 0, ""))
        assert any(line.startswith("NOISY") for line in lines) is noisy


def test_failures_are_those_of_any_part() -> None:
    failed = outcome()
    failed.error("expected another prediction", 2)
    steps = [ladder.step(1.0, 2.0, failed, IDLE), ladder.step(2.0, 2.0, outcome(), IDLE)]
    assert ladder.Ladder("edge", 10.0, steps, 0.0, 1, "closed").failures == [
        (2, "expected another prediction"),
        (1, "closed"),
    ]
