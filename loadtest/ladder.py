"""What the steps of an overload ladder come to, for people to read."""

import http
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from outcomes import Answer, Outcome

OBJECTIVES = json.loads((Path(__file__).parents[1] / "monitoring/objectives.json").read_text())
# Within this an answer is of use when more is asked than can be answered: TIERCEL_MAX_QUEUE_MS, and as much again for
# NGINX and the inference itself. The objective of quieter times is shorter than that queue.
SLO_SECONDS: float = OBJECTIVES["overload_seconds"]
REFUSALS = frozenset({http.HTTPStatus.TOO_MANY_REQUESTS, http.HTTPStatus.SERVICE_UNAVAILABLE})
# Until then a step is about how overload is noticed, from then on about how it is borne.
ONSET_SECONDS = 1.0
# A generator that sends later than this, more often than once in a hundred, did not offer what it was to offer.
LATE_SECONDS = 0.01
# What is asked of the server, at this many times its capacity.
TARGET_SHARE, TARGET_OF_PEAK = 5.0, 0.9
TARGET_REFUSED_SECONDS = 0.01
TARGET_RECOVERY_SECONDS = 5.0
# CPUs busy with something else, from which on figures say more about that than about the server.
NOISY = 0.1

HEAD = (
    "x capacity",
    "offered/s",
    "goodput/s",
    "of peak",
    "200",
    "too slow",
    "503",
    "429",
    "errors",
    "200 p50 ms",
    "p99 ms",
    "refused p50 ms",
    "p99 ms",
    "p99 of onset",
    "goodput per CPU s",
    "API CPUs",
    "edge",
    "generator",
    "others",
    "late ms",
)


@dataclass(frozen=True)
class Usage:
    """CPUs that each kept busy."""

    api: float
    edge: float
    generator: float
    others: float

    @property
    def system(self) -> float:
        return self.api + self.edge


@dataclass(frozen=True)
class Latency:
    """In seconds; not a number if there was none."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Step:
    """An open loop at `share` times the capacity; `offered` and `goodput` are per second, counts of the whole step."""

    share: float
    offered: float
    goodput: float
    accepted: int
    slow: int
    unavailable: int
    too_many: int
    errors: int
    first_error: str
    # Of answers of status 200; of refusals once the onset is over, and in it.
    latency: Latency
    refused: Latency
    onset: Latency
    usage: Usage
    late: float

    @property
    def counts(self) -> bool:
        return self.late <= LATE_SECONDS

    @property
    def refusals(self) -> float:
        """Per second."""
        answers = self.accepted + self.unavailable + self.too_many
        return self.offered * (self.unavailable + self.too_many) / max(1, answers)


@dataclass(frozen=True)
class Ladder:
    """`recovery` as below; `errors`: those of the way up to the first step, and down from the last."""

    system: str
    capacity: float
    steps: Sequence[Step]
    recovery: float
    errors: int
    first_error: str

    @property
    def failures(self) -> list[tuple[int, str]]:
        """How many errors there were and which came first, wherever there were any."""
        found = [(step.errors, step.first_error) for step in self.steps] + [(self.errors, self.first_error)]
        return [failure for failure in found if failure[0]]

    @property
    def peak(self) -> float:
        return max((step.goodput for step in self.steps if step.counts), default=math.nan)


def step(share: float, seconds: float, outcome: Outcome, usage: Usage) -> Step:
    """Good answers count for as long as requests came: the queue that is left then is not sustained."""
    accepted = [answer for answer in outcome.answers if answer.status == http.HTTPStatus.OK]
    refused = [answer for answer in outcome.answers if answer.status in REFUSALS]
    calm = outcome.started + ONSET_SECONDS
    end = outcome.started + seconds
    return Step(
        share=share,
        offered=len(outcome.late) / seconds,
        goodput=sum(is_good(answer) and answer.due + answer.seconds <= end for answer in accepted) / seconds,
        accepted=len(accepted),
        slow=sum(not is_good(answer) for answer in accepted),
        unavailable=sum(answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE for answer in refused),
        too_many=sum(answer.status == http.HTTPStatus.TOO_MANY_REQUESTS for answer in refused),
        errors=outcome.errors,
        first_error=outcome.first_error,
        latency=_latency([answer.seconds for answer in accepted]),
        refused=_latency([answer.seconds for answer in refused if answer.due >= calm]),
        onset=_latency([answer.seconds for answer in refused if answer.due < calm]),
        usage=usage,
        late=_latency(outcome.late).p99,
    )


def is_good(answer: Answer) -> bool:
    return answer.status == http.HTTPStatus.OK and answer.seconds <= SLO_SECONDS


def recovery(answers: Sequence[Answer], end: float) -> float:
    """From the `end` of the overload, seconds until the last request was due that had no good answer."""
    return max((answer.due - end for answer in answers if answer.due > end and not is_good(answer)), default=0.0)


def rows(ladder: Ladder) -> list[list[str]]:
    return [_row(step, ladder.peak) for step in ladder.steps]


def verdicts(ladder: Ladder) -> list[str]:
    """Each target, and how far it was met by the steps that count."""
    steps = [step for step in ladder.steps if step.counts]
    lines = [f"{step.share:g} x does not count: requests were sent late" for step in ladder.steps if not step.counts]
    others = median(step.usage.others for step in ladder.steps)
    if others >= NOISY:
        lines.append(f"NOISY: {others:.2f} CPUs were busy with something else")
    lines += [
        _verdict(
            f"goodput at {step.share:g} x is {TARGET_OF_PEAK:.0%} of the peak or more",
            step.goodput >= TARGET_OF_PEAK * ladder.peak,
            f"{step.goodput / ladder.peak:.0%}",
        )
        for step in steps
        if step.share == TARGET_SHARE
    ]
    slowest = max((step.latency.p99 for step in steps if step.accepted), default=math.nan)
    within = f"p99 of what was accepted is within {SLO_SECONDS:g} s"
    lines.append(_verdict(within, slowest <= SLO_SECONDS, f"{slowest:.2f} s"))
    if refused := [step.refused.p99 for step in steps if not math.isnan(step.refused.p99)]:
        quick = f"p99 of refusals, after the onset, is within {TARGET_REFUSED_SECONDS * 1000:g} ms"
        lines.append(_verdict(quick, max(refused) <= TARGET_REFUSED_SECONDS, f"{max(refused) * 1000:.1f} ms"))
    recovered = f"recovery takes less than {TARGET_RECOVERY_SECONDS:g} s"
    lines.append(_verdict(recovered, ladder.recovery < TARGET_RECOVERY_SECONDS, f"{ladder.recovery:.2f} s"))
    return lines


def _latency(seconds: Sequence[float]) -> Latency:
    ordered = sorted(seconds) or [math.nan]
    return Latency(*(ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99)))


def _verdict(target: str, is_met: bool, got: str) -> str:
    return f"{'met   ' if is_met else 'MISSED'}  {target}: {got}"


def _row(step: Step, peak: float) -> list[str]:
    return [
        f"{step.share:g}" + ("" if step.counts else " LATE"),
        f"{step.offered:,.0f}",
        f"{step.goodput:,.0f}",
        f"{step.goodput / peak:.0%}",
        *(f"{count:,}" for count in (step.accepted, step.slow, step.unavailable, step.too_many, step.errors)),
        *(_ms(value) for value in (step.latency.p50, step.latency.p99)),
        *(_ms(value) for value in (step.refused.p50, step.refused.p99, step.onset.p99)),
        f"{step.goodput / step.usage.system:,.0f}",
        *(f"{cpus:.2f}" for cpus in (step.usage.api, step.usage.edge, step.usage.generator, step.usage.others)),
        _ms(step.late),
    ]


def _ms(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds * 1000:.1f}"
