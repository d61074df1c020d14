"""What is noted of a request while it is answered, and what there is to say of it then."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from inference_core.model import Model
from inference_core.predictor import Prediction
from observability.metrics import Counter
from observability.tracing import Span, Trace, new_trace, read_trace

SERVER_ERROR = 500

# Seconds: in total, beside all that follows, in NGINX's queue, for the input, the inference, the output, the cache.
Times = tuple[float, float, float, float, float, float, float]


class Kind(NamedTuple):
    """What requests that are counted alike have in common: where they are counted, and most of what is said of them."""

    answered: Counter
    # Its row in the table of what requests took; whether a line would tell nobody anything.
    row: int
    quiet: bool
    route: str
    status: int
    model: str
    version: str
    cache: str


class Observation(msgspec.Struct, gc=False, eq=False):
    """One request. Moments are those of `time.perf_counter`; 0.0: it did not come to that."""

    request_id: str
    # What its headers say of its trace.
    traceparent: str
    tracestate: str
    # Seconds since it arrived at NGINX.
    queued: float
    began: float
    # When its body had been read, and when its answer was known.
    read: float = 0.0
    predicted: float = 0.0
    model: Model | None = None
    prediction: Prediction | None = None
    # What was done besides predicting.
    spans: Sequence[Span] = ()
    found_trace: Trace | None = None
    keeps_trace: bool = False

    def known_trace(self) -> Trace | None:
        """The trace that it names, or that it was given since. PERF: not read before somebody asks."""
        if self.found_trace is None and self.traceparent:
            self.found_trace = read_trace(self.traceparent, self.tracestate)
        return self.found_trace

    def keep_trace(self) -> Trace:
        """Its trace, or a new one, to be kept whatever the lot says."""
        self.keeps_trace = True
        self.found_trace = (self.known_trace() or new_trace())._replace(sampled=True)
        return self.found_trace

    def times(self, ended: float) -> Times:
        queue, prediction = self.queued, self.prediction
        total = ended - self.began + queue
        if prediction is None:
            return total, total - queue, queue, 0.0, 0.0, 0.0, 0.0
        reading = prediction.began - self.read + prediction.input_seconds
        infer, output, cache = prediction.infer_seconds, ended - self.predicted, prediction.cache_seconds
        return total, total - queue - reading - infer - output - cache, queue, reading, infer, output, cache
