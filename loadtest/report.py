"""What a run comes to, for people to read."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from samples import Sample
from scenarios import Scenario

# Of each system, one sample per round.
Samples = dict[str, list[Sample]]

OWN, EDGE = "tiercel/", "edge/"
LIMIT = "in-process"
# Of ours and of another, what they are compared by.
RATIOS: dict[str, Callable[[Sample, Sample], float]] = {
    "req/s": lambda mine, other: mine.rate / other.rate,
    "requests per CPU second": lambda mine, other: other.cpu / mine.cpu,
    "p50": lambda mine, other: mine.p50 / other.p50,
    "p99": lambda mine, other: mine.p99 / other.p99,
}
Pair = tuple[str, str]
# CPUs busy with something else, from which on throughput and latency say more about that than about the systems.
NOISY = 0.1


@dataclass(frozen=True)
class Footprint:
    """What a server needs besides CPU time for its answers."""

    name: str
    ready_seconds: list[float]
    last_worker_private_bytes: int
    idle_cpus: float


def headline(scenario: Scenario) -> str:
    return f"{scenario.name}: {scenario.title}; {scenario.connections} connections, {scenario.load}"


def scenario(samples: Samples, pairs: Sequence[Pair]) -> str:
    parts = (_figures(samples), _ratios(samples, pairs), _client(samples), _noise(samples))
    return "\n\n".join(filter(None, parts))


def comparisons(names: Iterable[str]) -> list[Pair]:
    """Each of ours beside every peer that is reached in the same way, the limit, itself direct, and with less."""
    return [(name, reference) for name, reference in itertools.permutations(names, 2) if _is_compared(name, reference)]


def _is_compared(name: str, reference: str) -> bool:
    if OWN not in name:
        return False
    if OWN in reference:
        return name == EDGE + reference or name.startswith(f"{reference}+")
    return reference == LIMIT or name.startswith(EDGE) == reference.startswith(EDGE)


def across(results: dict[str, Samples], scenario: str, reference: str) -> str:
    """Each system's figures of one scenario beside its own of another."""
    samples = {f"{name}, {which}": results[which][name] for which in (scenario, reference) for name in results[which]}
    pairs = [(f"{name}, {scenario}", f"{name}, {reference}") for name in results[scenario]]
    return _ratios(samples, pairs)


def footprints(servers: list[Footprint]) -> str:
    head = ["server", "ready s", "lowest-highest", "private MB of the last worker", "CPUs when idle"]
    rows = [
        [
            server.name,
            f"{median(server.ready_seconds):.2f}",
            f"{min(server.ready_seconds):.2f}-{max(server.ready_seconds):.2f}",
            f"{server.last_worker_private_bytes / 1e6:.1f}",
            f"{server.idle_cpus:.3f}",
        ]
        for server in servers
    ]
    return table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in [head, ["-" * width for width in widths], *rows]:
        first, *others = row
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def _figures(samples: Samples) -> str:
    """Medians over the rounds, but for the worst of all answers."""
    head = [
        "system",
        "req/s",
        "lowest-highest",
        "p50 ms",
        "p99 ms",
        "worst ms",
        "CPU us/req",
        "balance (lowest)",
        "others",
        "errors",
    ]
    rows = []
    for name, taken in samples.items():
        rates = [sample.rate for sample in taken]
        rows.append(
            [
                name,
                f"{median(rates):,.0f}",
                f"{min(rates):,.0f}-{max(rates):,.0f}",
                f"{_median(taken, 'p50'):.2f}",
                f"{_median(taken, 'p99'):.2f}",
                f"{max(sample.worst for sample in taken):.1f}",
                f"{_median(taken, 'cpu'):,.0f}",
                f"{_median(taken, 'balance'):.2f} ({min(sample.balance for sample in taken):.2f})",
                f"{_median(taken, 'others'):.2f}",
                str(sum(sample.errors for sample in taken)),
            ]
        )
    return table(head, rows)


def _ratios(samples: Samples, pairs: Sequence[Pair]) -> str:
    """Of each pair the median, over the rounds, of the ratio within a round, and its range."""
    right = {name: taken for name, taken in samples.items() if not any(sample.errors for sample in taken)}
    rows = [
        [
            f"{name} / {reference}",
            *(_ratio(right[name], right[reference], ratio) for ratio in RATIOS.values()),
            _more_cpu(right[name], right[reference]),
        ]
        for name, reference in pairs
        if name in right and reference in right
    ]
    return table(["median of the rounds' ratios", *RATIOS, "CPU us/req more"], rows) if rows else ""


def _client(samples: Samples) -> str:
    """What the load generator took of the CPUs that it shares with the servers."""
    served = {name: taken for name, taken in samples.items() if _median(taken, "client_cpu") and _median(taken, "rate")}
    if not served:
        return ""
    fastest = max(served, key=lambda name: _median(served[name], "rate"))
    client, server, rate = (_median(served[fastest], what) for what in ("client_cpu", "cpu", "rate"))
    late = max(_median(taken, "late") for taken in samples.values())
    return (
        f"load generator: {client:.0f} us of CPU per request with {fastest}, {server / client:.1f} times less than "
        f"that server; it kept {client * rate / 1e6:.2f} CPUs busy"
        + (f"; 99 % of the requests were sent within {late:.2f} ms of when they were due" if late else "")
    )


def _noise(samples: Samples) -> str:
    others = median(sample.others for taken in samples.values() for sample in taken)
    if others < NOISY:
        return ""
    return f"NOISY: {others:.2f} CPUs were busy with something else: of these figures, trust requests per CPU second"


def _median(samples: list[Sample], what: str) -> float:
    return float(median(getattr(sample, what) for sample in samples))


def _ratio(mine: list[Sample], others: list[Sample], ratio: Callable[[Sample, Sample], float]) -> str:
    ratios = [ratio(a, b) for a, b in zip(mine, others, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _more_cpu(mine: list[Sample], others: list[Sample]) -> str:
    more = [a.cpu - b.cpu for a, b in zip(mine, others, strict=True)]
    return f"{median(more):+,.0f} ({min(more):+,.0f} to {max(more):+,.0f})"
