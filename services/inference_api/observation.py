"""What is known of a request when it has ended: counted, timed, logged in one line, told to who asked, and traced.

A request is observed from the first middleware to the last; resources only note when they did what. That it was
answered is counted at once, so that no kill loses it. PERF: its line and its timings follow with those of a few others,
a tenth of a second later at most: Python that runs once a request takes three times as long as in a loop.
"""

import functools
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import BinaryIO, NamedTuple

import falcon
import msgspec
import structlog

from inference_api import admission
from inference_api.authorisation import subject
from inference_core.model import Model
from inference_core.predictor import Prediction
from observability import families
from observability.metrics import OTHER, Counter, Group
from observability.tracing import Clock, Span, Trace, Tracer, random_id, trace_of

REQUEST_ID = re.compile(r"[A-Za-z0-9-]{8,64}")
# Of a path that no route has.
NO_ROUTE = "unknown"
SERVICE = "api"
# Who asks each few seconds whether this server is well: not worth a line, as long as it is.
QUIET = ("/v2/health/live", "/v2/health/ready", "/metrics")
SERVER_ERROR = 500
# Requests whose line and timings wait for each other, and for how long.
BATCH, DELAY_SECONDS = 32, 0.1
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

ENCODER = msgspec.json.Encoder()

log = structlog.get_logger("tiercel.request")


class Stages(NamedTuple):
    """Seconds."""

    queue: float
    cache: float
    input: float
    infer: float
    output: float
    total: float


class Observation:
    """One request. Times are those of `time.perf_counter`; 0.0: it did not come to that."""

    __slots__ = (
        "began", "began_at", "cpu", "ended", "method", "model", "predicted", "prediction", "queued", "read",
        "request_id", "route", "size", "spans", "stages", "status", "subject", "trace",
    )  # fmt: skip

    def __init__(self, request_id: str, trace: Trace, queued: float) -> None:
        self.request_id = request_id
        self.trace = trace
        # Seconds since it arrived at NGINX.
        self.queued = queued
        self.began = time.perf_counter()
        # The same in seconds of the day 1970.
        self.began_at = time.time()
        # When its body had been read, and when its answer was known.
        self.read = self.predicted = 0.0
        self.model: Model | None = None
        self.prediction: Prediction | None = None
        # What was done besides predicting.
        self.spans: Sequence[Span] = ()

    def end(self, req: falcon.Request, status: int, size: int, cpu: float) -> None:
        self.ended = time.perf_counter()
        self.method = req.method
        self.route = req.uri_template or NO_ROUTE
        self.subject = subject(req.env)
        self.status = status
        self.size = size
        # The process's CPU time by now.
        self.cpu = cpu
        self.stages = _stages(self)
        if self.prediction:
            self.prediction.answer = []  # which others need not wait with


class Line(msgspec.Struct, omit_defaults=True):
    """A request in the log."""

    timestamp: str
    level: str
    logger: str
    event: str
    service: str
    request_id: str
    trace_id: str
    method: str
    route: str
    status: int
    seconds: float
    bytes: int
    subject: str | None = None
    model: str = ""
    version: str = ""
    rows: int = 0
    queue_seconds: float = 0.0
    input_seconds: float = 0.0
    infer_seconds: float = 0.0
    output_seconds: float = 0.0
    cache: str = ""
    cache_seconds: float = 0.0


class Observer:
    """Middleware; the first, so that its time is the whole. Lines go to `out`, if there is one."""

    def __init__(
        self, tracer: Tracer, out: BinaryIO | None = None, clock: Callable[[], float] = time.process_time
    ) -> None:
        self._tracer = tracer
        self._out = out
        self._clock = clock
        # CPU time that is somebody's already: what comes between requests is the next one's.
        self._cpu = clock()
        self._in_flight = families.IN_FLIGHT.of()
        self._answered: dict[tuple[str, ...], Counter] = {}
        self._groups: dict[tuple[str, ...], Group] = {}
        self._waiting: list[Observation] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._flush_for_ever, name="observer", daemon=True).start()

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        environ, context = req.env, req.context
        request_id: str = environ.get("HTTP_X_REQUEST_ID", "")
        # SECURITY: it ends up in headers and logs.
        if not request_id or not REQUEST_ID.fullmatch(request_id):
            request_id = random_id()
        context.request_id = request_id
        context.observer = self
        trace = trace_of(environ, self._tracer.ratio)
        context.observation = Observation(request_id, trace, admission.age(environ))
        resp.set_header("X-Request-ID", request_id)
        self._in_flight.add()

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: object, succeeded: bool) -> None:
        observation: Observation = req.context.observation
        observation.end(req, int(str(resp.status)[:3]), len(resp.data or b""), self._clock())
        resp.set_header("Server-Timing", _server_timing(observation.stages))
        self._take(observation)

    def abandon(self, req: falcon.Request, status: int) -> None:
        """The request is answered in its stead, and its process ends."""
        observation: Observation = req.context.observation
        observation.end(req, status, 0, self._clock())
        self._take(observation)
        self.flush()

    def flush(self) -> None:
        """Count and log what waits."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            for observation in waiting:
                self._count(observation)
            if self._out:
                lines = [_line(each) for each in waiting if each.route not in QUIET or each.status >= SERVER_ERROR]
                if lines:
                    self._out.write(ENCODER.encode_lines(lines))
                    self._out.flush()

    def _take(self, observation: Observation) -> None:
        manifest = observation.model.manifest if observation.model else None
        key = (
            observation.route,
            observation.method,
            manifest.name if manifest else "",
            manifest.version if manifest else "",
            str(observation.status),
        )
        (self._answered.get(key) or self._new_counter(key)).add()
        self._in_flight.add(-1)
        if self._tracer.wants(observation.trace, observation.stages.total, failed=observation.status >= SERVER_ERROR):
            self._trace(observation)
        self._waiting.append(observation)
        if len(self._waiting) >= BATCH:
            self._try_to_flush()

    def _new_counter(self, key: tuple[str, ...]) -> Counter:
        route, method, *others = key
        # SECURITY: a label is never what a client has made up, nor is that remembered here.
        if method not in falcon.HTTP_METHODS:
            return families.REQUESTS.of(route, OTHER, *others)
        found = self._answered[key] = families.REQUESTS.of(*key)
        return found

    def _count(self, observation: Observation) -> None:
        model = observation.model.manifest.name if observation.model else ""
        cpu, self._cpu = max(0.0, observation.cpu - self._cpu), max(observation.cpu, self._cpu)
        queue, cache, reading, infer, output, total = observation.stages
        key = (observation.route, model)
        group = self._groups.get(key) or self._new_group(*key)
        group.count((cpu,), (total, total - queue - cache - reading - infer - output))
        if queue:
            families.QUEUE_SECONDS.of().observe(queue)
        if (prediction := observation.prediction) and observation.model:
            version, outcome = observation.model.manifest.version, prediction.cache
            group = self._groups.get((model, version, outcome)) or self._new_group_of_model(model, version, outcome)
            # What was computed nowhere took no inference, and what is remembered nowhere no cache.
            times = (reading, output, infer, cache) if infer else (reading, output, cache)
            group.count((prediction.rows, cpu, 1.0), times)

    def _new_group(self, route: str, model: str) -> Group:
        seconds = [families.REQUEST_SECONDS.of(route, model), families.OVERHEAD_SECONDS.of(route)]
        group = self._groups[route, model] = Group([families.PROCESS_CPU_SECONDS.of()], seconds)
        return group

    def _new_group_of_model(self, model: str, version: str, cache: str) -> Group:
        """In the order of what `_count` measures."""
        counters = [families.ROWS.of(model, version), families.CPU_SECONDS.of(model, version)]
        seconds = [families.INPUT_SECONDS.of(model, version), families.OUTPUT_SECONDS.of(model, version)]
        outcome = CACHE_OUTCOMES.get(cache)
        if outcome not in NOT_COMPUTED:
            seconds.append(families.INFER_SECONDS.of(model, version))
        if outcome:
            counters.append(families.CACHE_REQUESTS.of(model, version, outcome))
            seconds.append(families.CACHE_SECONDS.of(model, version))
        group = self._groups[model, version, cache] = Group(counters, seconds)
        return group

    def _trace(self, observation: Observation) -> None:
        at, manifest = Clock(), observation.model.manifest if observation.model else None
        attributes = {
            "http.request.method": observation.method,
            "http.route": observation.route,
            "http.response.status_code": observation.status,
            "tiercel.request_id": observation.request_id,
            "tiercel.subject": observation.subject,
            "tiercel.model": manifest and manifest.name,
            "tiercel.version": manifest and manifest.version,
        }
        root = Span(
            f"{observation.method} {observation.route}",
            at(observation.began - observation.queued),
            at(observation.ended),
            attributes,
            "SERVER",
            f"status {observation.status}" if observation.status >= SERVER_ERROR else "",
        )
        self._tracer.record(observation.trace, root, [*_parts(observation, at), *observation.spans])

    def _flush_for_ever(self) -> None:
        while True:
            time.sleep(DELAY_SECONDS)
            self._try_to_flush()

    def _try_to_flush(self) -> None:
        try:
            self.flush()
        except Exception:  # such as nobody to read what is written: requests, and the thread, must go on
            with suppress(OSError):  # nor this
                log.exception("requests cannot be logged")


def open_observer(tracer: Tracer, *, log_lines: bool) -> Observer:
    """With a thread: call it after the fork."""
    observer = Observer(tracer, sys.stdout.buffer if log_lines else None)
    observer.start()
    return observer


def _stages(observation: Observation) -> Stages:
    queued, ended, prediction = observation.queued, observation.ended, observation.prediction
    total = ended - observation.began + queued
    if prediction is None:
        return Stages(queued, 0.0, 0.0, 0.0, 0.0, total)
    reading = prediction.began - observation.read + prediction.input_seconds
    output = ended - observation.predicted
    return Stages(queued, prediction.cache_seconds, reading, prediction.infer_seconds, output, total)


def _line(observation: Observation) -> Line:
    queue, cache, reading, infer, output, total = observation.stages
    manifest, prediction = observation.model and observation.model.manifest, observation.prediction
    line = Line(
        _timestamp(observation.began_at + total - queue),
        "info",
        "tiercel.request",
        "request",
        SERVICE,
        observation.request_id,
        observation.trace.id,
        observation.method,
        observation.route,
        observation.status,
        round(total, 6),
        observation.size,
        observation.subject,
    )
    if manifest:
        line.model, line.version = manifest.name, manifest.version
    if queue:
        line.queue_seconds = round(queue, 6)
    if prediction:
        line.rows, line.cache = prediction.rows, prediction.cache
        line.input_seconds, line.infer_seconds = round(reading, 6), round(infer, 6)
        line.output_seconds, line.cache_seconds = round(output, 6), round(cache, 6)
    return line


def _timestamp(seconds: float) -> str:
    """RFC 3339, of seconds of the day 1970."""
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1e6):06d}Z"


@functools.lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _parts(observation: Observation, at: Clock) -> list[Span]:
    """The stages of a request on the clock."""
    spans = []
    if observation.queued:
        spans.append(Span("queue", at(observation.began - observation.queued), at(observation.began)))
    if prediction := observation.prediction:
        predicted, began = observation.predicted, prediction.began
        if prediction.cache:
            looked = began + prediction.cache_seconds
            spans.append(Span("cache", at(began), at(looked), {"tiercel.cache": prediction.cache}))
        spans.append(Span("preprocess", at(observation.read), at(began + prediction.input_seconds)))
        if prediction.infer_seconds:
            inferring = at(predicted - prediction.infer_seconds)
            spans.append(Span("inference", inferring, at(predicted), {"tiercel.rows": prediction.rows}))
        spans.append(Span("postprocess", at(predicted), at(observation.ended)))
    return spans


def _server_timing(stages: Stages) -> str:
    """https://www.w3.org/TR/server-timing/: milliseconds."""
    queue, cache, reading, infer, output, total = stages
    if not reading:
        return f"total;dur={total * 1e3:.3f}"
    before = f"queue;dur={queue * 1e3:.3f}, cache;dur={cache * 1e3:.3f}, " if queue or cache else ""
    return (
        f"{before}input;dur={reading * 1e3:.3f}, infer;dur={infer * 1e3:.3f}, output;dur={output * 1e3:.3f}, "
        f"total;dur={total * 1e3:.3f}"
    )
