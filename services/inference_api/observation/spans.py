"""A request as spans of a trace: of times that were measured anyway."""

from inference_api.observation.request import SERVER_ERROR, Kind, Observation
from observability.tracing import Clock, Span


def root(observation: Observation, kind: Kind, method: str, subject: str | None, ended: float, at: Clock) -> Span:
    """The whole, which has `ended` as `time.perf_counter` has it."""
    attributes = {
        "http.request.method": method,
        "http.route": kind.route,
        "http.response.status_code": kind.status,
        "tiercel.request_id": observation.request_id,
        "tiercel.subject": subject,
        "tiercel.model": kind.model or None,
        "tiercel.version": kind.version or None,
    }
    error = f"status {kind.status}" if kind.status >= SERVER_ERROR else ""
    began = at(observation.began - observation.queued)
    return Span(f"{method} {kind.route}", began, at(ended), attributes, "SERVER", error)


def parts(observation: Observation, ended: float, at: Clock) -> list[Span]:
    """Its stages, and what else was done."""
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
        spans.append(Span("postprocess", at(predicted), at(ended)))
    return [*spans, *observation.spans]
