"""Which configurations are tried, and which of them is the best."""

import statistics
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tuning.configuration import Configuration
from tuning.trial import Trial

MAX_TRIALS = 30
# After so many the best are tried again, each of them so often, in turn: what the machine does meanwhile then falls on
# all alike.
MOST_EXPLORED = 21
ROUNDS = 3

Measure = Callable[[Configuration], Trial]


class Standing(NamedTuple):
    """Of its trials the best rate, as what else the machine does only takes away, and the median p99."""

    configuration: Configuration
    rate: float
    p99_ms: float
    connections: int
    trials: int
    fault: str = ""

    def rank(self, goal_ms: float) -> tuple[int, float]:
        """Higher is better: within the goal the higher rate, beyond it the lower latency, and last what has failed."""
        if self.fault:
            return 0, 0.0
        return (2, self.rate) if self.is_within(goal_ms) else (1, -self.p99_ms)

    def is_within(self, goal_ms: float) -> bool:
        return not self.fault and self.p99_ms <= goal_ms


def most_trials(grid: Sequence[Configuration]) -> int:
    """How many a search takes."""
    explored = min(len(grid), MOST_EXPLORED)
    return explored + min(explored, _finalists(explored)) * ROUNDS


def _finalists(explored: int) -> int:
    """How many there are trials left for."""
    return (MAX_TRIALS - explored) // ROUNDS


def search(grid: Sequence[Configuration], measure: Measure, goal_ms: float) -> list[Trial]:
    """Both ends of the grid, then always what is nearest to the best that is known; in the end the best again."""
    trials: list[Trial] = []
    left = list(grid)
    while left and len(trials) < MOST_EXPLORED:
        following = _following(left, trials, goal_ms)
        left.remove(following)
        trials.append(measure(following))
    finalists = [standing.configuration for standing in standings(trials, goal_ms)]
    return trials + in_turn(finalists[: _finalists(len(trials))], measure)


def _following(left: Sequence[Configuration], trials: Sequence[Trial], goal_ms: float) -> Configuration:
    if len(trials) < 2:
        return left[-1] if trials else left[0]
    best = standings(trials, goal_ms)[0].configuration
    return min(left, key=best.distance)


def in_turn(configurations: Sequence[Configuration], measure: Measure) -> list[Trial]:
    """Each in every round, and each round begins with another one."""
    turns, trials = deque(configurations), []
    for _ in range(ROUNDS):
        trials += [measure(configuration) for configuration in turns]
        turns.rotate()
    return trials


def standings(trials: Sequence[Trial], goal_ms: float) -> list[Standing]:
    """The best first."""
    by_configuration: dict[Configuration, list[Trial]] = {}
    for trial in trials:
        by_configuration.setdefault(trial.configuration, []).append(trial)
    found = [standing(own) for own in by_configuration.values()]
    return sorted(found, key=lambda standing: standing.rank(goal_ms), reverse=True)


def standing(trials: Sequence[Trial]) -> Standing:
    """Of the trials of one configuration."""
    configuration, levels = trials[0].configuration, [trial.measured for trial in trials if trial.measured]
    if fault := next((trial.fault for trial in trials if trial.fault), ""):
        return Standing(configuration, 0.0, 0.0, 0, len(trials), fault)
    best = max(levels, key=lambda level: level.rate)
    p99_ms = statistics.median(level.p99_ms for level in levels)
    return Standing(configuration, best.rate, p99_ms, best.connections, len(trials))
