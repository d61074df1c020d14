"""Every metric there is: its name, what it says, its labels. Seconds and bytes; `monitoring/` reads these names."""

from observability.metrics import REGISTRY, Counter, Family, Labels, counter, gauge, histogram

MODEL = ("model", "version")

# Requests. `route` is a template of app.routes, never a path.
REQUESTS = counter("requests_total", "Requests that were answered.", "route", "method", "model", "version", "status")
REQUEST_SECONDS = histogram(
    "request_seconds", "From a request's arrival, at NGINX if it stamps it, to its answer.", "route", "model"
)
QUEUE_SECONDS = histogram("queue_seconds", "From a request's arrival at NGINX until a worker begins with it.")
OVERHEAD_SECONDS = histogram("overhead_seconds", "What a request took beside its stages and its queue.", "route")
IN_FLIGHT = gauge("requests_in_flight", "Requests that workers are busy with.", merge="sum")
SHED = counter("shed_total", "Requests refused because there are too many, by what there is too much of.", "reason")

# Predictions, stage by stage.
INPUT_SECONDS = histogram("compute_input_seconds", "Reading the input: JSON, tensors, photos.", *MODEL)
INFER_SECONDS = histogram("compute_infer_seconds", "The inference.", *MODEL)
OUTPUT_SECONDS = histogram("compute_output_seconds", "Writing the answer.", *MODEL)
CACHE_SECONDS = histogram("cache_seconds", "Looking for remembered answers, waiting for others', keeping them.", *MODEL)
ROWS = counter("prediction_rows_total", "Rows that were predicted, computed or remembered.", *MODEL)
BATCHED = counter("batched_predictions_total", "Predictions that were run together with others.", *MODEL)
CPU_SECONDS = counter("prediction_cpu_seconds_total", "CPU time of requests for predictions.", *MODEL)
CACHE_REQUESTS = counter("cache_requests_total", "How the cache took part in predictions.", *MODEL, "outcome")

# Access.
QUOTAS = counter("quota_requests_total", "Requests that were counted under a quota.", "quota", "outcome")
AUTH_REFUSALS = counter("auth_refusals_total", "Requests refused for want of a good token.", "reason")
TOKENS = counter("tokens_issued_total", "Requests for a token: issued, or refused.", "outcome")

# Models.
MODEL_INFO = gauge("model_info", "A version that is served; 1.", *MODEL, "digest", merge="max")
LOAD_SECONDS = gauge("model_load_seconds", "What loading and warming up a version took.", *MODEL, merge="max")

# Jobs: what the API accepts, what workers do.
JOBS_ACCEPTED = counter("jobs_accepted_total", "Jobs that were handed over.", "model")
JOBS_ENDED = counter("jobs_ended_total", "Jobs that have ended.", "model", "status")
JOB_ROWS = counter("job_rows_total", "Rows of jobs that were worked on.", "model", "outcome")
JOB_SECONDS = histogram(
    "job_seconds",
    "From a job's submission to its end.",
    "model",
    buckets=(0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0),
)
JOB_FAULTS = counter("job_attempts_failed_total", "Attempts at jobs that failed through no fault of theirs.")
QUEUE_REFUSALS = counter("queue_refusals_total", "What was on the queue and is not ours.")
WEBHOOKS = counter("webhooks_total", "Attempts to tell somebody of the end of a job.", "outcome")
JOBS = gauge("jobs", "Jobs there are.", "status", merge="max")
OLDEST_JOB_SECONDS = gauge("jobs_oldest_queued_seconds", "How long the oldest job that is due has waited.", merge="max")
JOBS_BYTES = gauge("jobs_disk_bytes", "What jobs take on disk.", merge="max")
JOBS_LIMIT_BYTES = gauge("jobs_disk_limit_bytes", "What they may take.", merge="max")

# The processes.
READY = gauge("ready", "Whether all that should be served is.", merge="min")
WORKERS = gauge("workers", "Worker processes that live.", merge="max")
WORKERS_PLANNED = gauge("workers_planned", "Worker processes that there should be.", merge="max")
WORKER_STARTS = counter("worker_starts_total", "Worker processes that have started.")
WORKER_BYTES = gauge("worker_resident_bytes", "Memory of a worker, numbered by age.", "worker", merge="max")
PROCESS_CPU_SECONDS = counter("cpu_seconds_total", "CPU time of all workers, as of their last request.")
INFERENCE_THREADS = gauge("threads_per_inference", "Threads of an inference.", merge="max")
BUILD_INFO = gauge("build_info", "What runs; 1.", "version", "python", "onnxruntime", "worker_class", merge="max")
REDIS_AVAILABLE = gauge("redis_available", "Whether workers ask Redis; 0 as long as it is away.", "redis", merge="min")
REDIS_ERRORS = counter("redis_errors_total", "Commands that Redis did not answer, or refused.", "redis")
SPANS = counter("spans_total", "Spans of traces, exported or dropped.", "outcome")
LINES_DROPPED = counter("log_lines_dropped_total", "Lines of requests that nobody has read in time.")
SCRAPE_SECONDS = gauge("metrics_scrape_seconds", "What it took to collect these figures.", merge="max")

# What the values of a label can be, where they are few.
CLOSED: dict[Family[Counter], tuple[Labels, ...]] = {
    SHED: (("queue",), ("aside",), ("deadline",)),
    AUTH_REFUSALS: (("missing",), ("malformed",), ("expired",), ("signature",), ("revoked",), ("scope",)),
    TOKENS: (("issued",), ("refused",)),
    QUOTAS: (("default", "allowed"), ("default", "refused")),
    SPANS: (("exported",), ("dropped",)),
    WEBHOOKS: (("delivered",), ("failed",), ("given_up",)),
}


def begin_at_zero() -> None:
    """So that the first of its kind is seen to be one more than none."""
    for family in REGISTRY.families.values():
        if not family.labels and family.kind != "gauge":
            family.of()
    for family, values in CLOSED.items():
        for labels in values:
            family.of(*labels)
