"""One trial: a server with one configuration, under a load that rises for as long as the goal is met."""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from tuning.configuration import Configuration
from tuning.load import Level, Load, LoadError
from tuning.others import Others
from tuning.server import serve

# Connections that are busy at a time.
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# Of the time of a measurement, what a look at a step takes.
LOOK = 0.2
# Two steps that bring no more than this are the last ones.
GROWTH = 1.03
# What brings nearly as much as the best with fewer connections is preferred, as its answers come sooner.
ENOUGH = 0.98
WARM_UP_SECONDS = 0.5


class Trial(msgspec.Struct, frozen=True):
    """What was measured, after looks at loads on the way to it; or what went wrong."""

    configuration: Configuration
    measured: Level | None = None
    looks: tuple[Level, ...] = ()
    fault: str = ""
    # CPUs that were busy with something else meanwhile.
    others: float = 0.0


class Trials:
    """What all trials have in common; `environ` is what the server's is made from."""

    def __init__(self, requests: Sequence[bytes], environ: Mapping[str, str], goal_ms: float, seconds: float) -> None:
        self._requests = requests
        self._environ = environ
        self._goal_ms = goal_ms
        self._seconds = seconds

    def measure(self, configuration: Configuration) -> Trial:
        others = Others()
        trial = self._measure(configuration)
        return msgspec.structs.replace(trial, others=others.cpus())

    def _measure(self, configuration: Configuration) -> Trial:
        try:
            with serve(configuration, self._environ) as port:
                load = Load(port, self._requests)
                load.run(2 * configuration.workers, WARM_UP_SECONDS)
                measured, looks = climb(load.run, self._goal_ms, self._seconds)
        except (LoadError, OSError) as error:
            return Trial(configuration, fault=str(error))
        return Trial(configuration, measured, looks)


def climb(run: Callable[[int, float], Level], goal_ms: float, seconds: float) -> tuple[Level, tuple[Level, ...]]:
    """The highest rate within the goal, measured for `seconds`, and the looks that led there.

    If the goal is never met, a single connection, which waits for nobody else.
    """
    looks: list[Level] = []
    for connections in STEPS:
        looks.append(run(connections, LOOK * seconds))
        if _is_beyond(looks, goal_ms) or _is_flat([look.rate for look in looks]):
            break
    within = [look for look in looks if look.is_within(goal_ms)] or looks[:1]
    enough = ENOUGH * max(look.rate for look in within)
    promising = next(number for number, look in enumerate(within) if look.rate >= enough)
    for look in reversed(within[: promising + 1]):
        measured = run(look.connections, seconds)
        if measured.is_within(goal_ms):
            break
    return measured, tuple(looks)


def _is_beyond(looks: Sequence[Level], goal_ms: float) -> bool:
    """Twice, as something else may have disturbed one of them."""
    return len(looks) > 1 and not any(look.is_within(goal_ms) for look in looks[-2:])


def _is_flat(rates: Sequence[float]) -> bool:
    return len(rates) > 2 and max(rates[-2:]) < GROWTH * max(rates[:-2])
