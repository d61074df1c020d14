"""One measurement: what the client saw, and who used the CPUs meanwhile."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from outcomes import Outcome
from processes import TICKS, busy_seconds, cpu_seconds


@dataclass(frozen=True)
class Sample:
    """Rates are per second, latencies in milliseconds, CPU times in microseconds per answer, shares from 0 to 1."""

    rate: float
    p50: float
    p99: float
    worst: float
    answers: int
    errors: int
    first_error: str
    cpu: float
    client_cpu: float
    # CPU time of the least busy of the workers over that of the busiest: 0 if one of them got all the connections.
    balance: float
    # Of an open loop: how long after it was due a request was sent, at worst but for 1 %.
    late: float
    # CPUs that were busy with anything but the system and the load generator.
    others: float


def take_sample(pids: list[int], workers: list[int], run: Callable[[], Outcome]) -> Sample:
    """Measure `run`, which keeps the processes `pids` busy, foremost the `workers` among them."""
    busy, before, started = busy_seconds(), cpu_seconds(pids), time.perf_counter()
    outcome = run()
    elapsed, after, busy = time.perf_counter() - started, cpu_seconds(pids), busy_seconds() - busy
    if after.keys() != before.keys():
        outcome.error("a process of the system ended during the measurement")
    used = {pid: after[pid] - before[pid] if pid in after else 0.0 for pid in pids}
    total = sum(used.values())
    shares = [used[pid] for pid in workers]
    latencies, late = sorted(outcome.latencies) or [float("nan")], sorted(outcome.late) or [0.0]
    per_answer = 1e6 / max(1, outcome.completed)
    return Sample(
        rate=outcome.rate,
        p50=1000 * _percentile(latencies, 0.5),
        p99=1000 * _percentile(latencies, 0.99),
        worst=1000 * latencies[-1],
        answers=outcome.completed,
        errors=outcome.errors,
        first_error=outcome.first_error,
        cpu=total * per_answer,
        client_cpu=outcome.cpu_seconds * per_answer,
        balance=min(shares) / max(*shares, 1 / TICKS),
        late=1000 * _percentile(late, 0.99),
        others=max(0.0, busy - total - outcome.cpu_seconds) / elapsed,
    )


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
