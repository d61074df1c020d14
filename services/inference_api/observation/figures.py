"""What is counted of requests (observability.families): at once that they were answered, later what they took."""

import threading
import time
from collections.abc import Callable, Sequence

import falcon
import numpy as np

from inference_api.observation.request import SERVER_ERROR, Kind, Observation, Times
from observability import families
from observability.metrics import OTHER, Counter, Histogram, Table

# Of a path that no route has.
NO_ROUTE = "unknown"
# Who asks each few seconds whether this server is well: not worth a line, as long as it is.
QUIET = ("/v2/health/live", "/v2/health/ready", "/metrics")
# What `Prediction.cache` says (RFC 9211), in metrics.
CACHE_OUTCOMES = {
    "hit": "hit",
    "fwd=miss; collapsed": "coalesced",
    "fwd=miss; stored": "miss",
    "fwd=miss": "unkept",
    "fwd=request; stored": "refreshed",
    "fwd=request": "unkept",
    "fwd=bypass": "bypass",
}
NOT_COMPUTED = ("hit", "coalesced")


class Figures:
    """`clock`: the CPU time of this process."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self._clock = clock
        self._cpu = clock()
        self._kinds: dict[tuple[object, ...], Kind] = {}
        self._table = Table(counters=3, histograms=7)
        self._lock = threading.Lock()

    def answered(self, observation: Observation, method: str, route: str | None, status: object) -> Kind:
        """Count a request at once, with a status as Falcon has it."""
        model, prediction = observation.model, observation.prediction
        name, version = (model.manifest.name, model.manifest.version) if model else ("", "")
        cache = prediction.cache if prediction else None
        key = (route, method, status, name, version, cache, observation.queued > 0)
        kind = self._kinds.get(key) or self._new_kind(*key)
        kind.answered.add()
        return kind

    def measured(self, table_rows: Sequence[int], rows: Sequence[int], times: Sequence[Times]) -> None:
        """What requests took, by their `Kind.row`. This process's CPU time is theirs, for as long as each was busy."""
        seconds = np.array(times)
        total, _, queue, _, _, _, cache = seconds.T
        busy = np.maximum(total - queue - cache, 1e-9)
        cpu = self._clock()
        spent, self._cpu = cpu - self._cpu, cpu
        families.PROCESS_CPU_SECONDS.of().add(spent)
        amounts = np.ones((len(rows), 3))
        amounts[:, 0] = rows
        amounts[:, 1] = busy * (spent / busy.sum())
        self._table.count(table_rows, amounts, seconds)

    def _new_kind(
        self, route: str | None, method: str, status: object, model: str, version: str, cache: str | None, queued: bool
    ) -> Kind:
        # SECURITY: a label is never what a client has made up, nor is that remembered here.
        label = method if method in falcon.HTTP_METHODS else OTHER
        key = (route, label, status, model, version, cache, queued)
        with self._lock:  # a row of the table is one kind's only
            if found := self._kinds.get(key):
                return found
            code, path = int(str(status)[:3]), route or NO_ROUTE
            answered = families.REQUESTS.of(path, label, model, version, str(code))
            row = self._table.add(*_series(path, model, version, cache, queued))
            quiet = path in QUIET and code < SERVER_ERROR
            kind = self._kinds[key] = Kind(answered, row, quiet, path, code, model, version, cache or "")
            return kind


def _series(
    route: str, model: str, version: str, cache: str | None, queued: bool
) -> tuple[list[Counter | None], list[Histogram | None]]:
    """In the order of what is `measured`. `cache`: how it took part in a prediction; None if there is none."""
    of_requests = [
        families.REQUEST_SECONDS.of(route, model),
        families.OVERHEAD_SECONDS.of(route),
        families.QUEUE_SECONDS.of() if queued else None,
    ]
    if cache is None:
        return [None] * 3, [*of_requests, None, None, None, None]
    outcome = CACHE_OUTCOMES.get(cache)
    counters = [
        families.ROWS.of(model, version),
        families.CPU_SECONDS.of(model, version),
        families.CACHE_REQUESTS.of(model, version, outcome) if outcome else None,
    ]
    # What was computed nowhere took no inference, and what is remembered nowhere no cache.
    of_stages = [
        families.INPUT_SECONDS.of(model, version),
        None if outcome in NOT_COMPUTED else families.INFER_SECONDS.of(model, version),
        families.OUTPUT_SECONDS.of(model, version),
        families.CACHE_SECONDS.of(model, version) if outcome else None,
    ]
    return counters, [*of_requests, *of_stages]
