"""What came of a run, as the client saw it."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Answer(NamedTuple):
    """`due`: when its request was, on the clock of time.perf_counter(); `seconds` until it was there."""

    status: int
    due: float
    seconds: float


@dataclass
class Outcome:
    """`latencies` in seconds: of the right answers that came in time; `completed` counts the late ones too."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    completed: int = 0
    # What came, refusals that an exchange allows included, but for what was wrong.
    answers: list[Answer] = field(default_factory=list)
    errors: int = 0
    first_error: str = ""
    # CPU time of the generator itself.
    cpu_seconds: float = 0.0
    started: float = 0.0
    # Of an open loop: how long after it was due each request was sent.
    late: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def error(self, what: str, count: int = 1) -> None:
        self.errors += count
        self.first_error = self.first_error or what

    def with_errors_of(self, before: "Outcome") -> "Outcome":
        if before.errors:
            self.error(before.first_error, before.errors)
        return self
