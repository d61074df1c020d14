"""What a search leaves behind: settings, all trials, and a plot."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from inference_core.host import description, fingerprint
from inference_core.settings import variable
from tuning.plot import plot
from tuning.search import Standing, standings
from tuning.trial import Trial


class Result(msgspec.Struct, frozen=True):
    """`command` is what was asked for, `models` has the digest of each that was served, by name and version."""

    command: str
    date: str
    models: dict[str, str]
    goal_ms: float
    trials: Sequence[Trial]

    @property
    def standings(self) -> list[Standing]:
        return standings(self.trials, self.goal_ms)

    @property
    def best(self) -> Standing:
        return self.standings[0]

    @property
    def is_met(self) -> bool:
        return self.best.is_within(self.goal_ms)


def write(folder: Path, result: Result) -> list[Path]:
    """tuned.env, for the environment or for Compose's .env; tuned.json, all of it; tuned.svg, for people."""
    texts = {
        "tuned.env": to_variables(result),
        "tuned.json": msgspec.json.format(msgspec.json.encode(to_json(result)), indent=1).decode() + "\n",
        "tuned.svg": plot(result.trials, result.best.configuration, result.goal_ms),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [folder / name for name in texts]


def to_variables(result: Result) -> str:
    best = result.best
    head = [
        f"{result.command}, {result.date}",
        f"host: {description()}",
        *(f"{model} sha256:{digest}" for model, digest in result.models.items()),
        in_words(best) + ("" if result.is_met else f", beyond the goal of {result.goal_ms:g} ms"),
        f"others took {statistics.median(trial.others for trial in result.trials):.1f} CPUs meanwhile",
    ]
    variables = best.configuration.variables() | {variable("tuned_for"): fingerprint()}
    comments = [f"# {' '.join(line.split())}\n" for line in head]
    return "".join([*comments, *(f"{name}={value}\n" for name, value in variables.items())])


def to_json(result: Result) -> dict[str, Any]:
    return {
        "host": description(),
        "fingerprint": fingerprint(),
        **msgspec.structs.asdict(result),
        "standings": [standing._asdict() for standing in result.standings],
    }


def in_words(standing: Standing) -> str:
    """A line for a table."""
    words = f"{standing.configuration!s:34}"
    if standing.fault:
        return f"{words} failed: {standing.fault}"
    figures = f"{standing.rate:10,.1f} requests/s   p99 {standing.p99_ms:8.2f} ms"
    return f"{words} {figures}   {standing.connections} connections, best of {standing.trials}"
