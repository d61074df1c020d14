"""A stack as Prometheus sees it, without the stack: every family that rules and dashboards use, made up."""

import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
JOB_BUCKETS = (1.0, 10.0, 60.0, 600.0, 3600.0)
MODELS = [("breast-cancer", "1"), ("efficientnet-lite0", "1"), ("efficientnet-lite0", "2")]
ROUTES = ["/v1/models/{model}:predict", "/v2/models/{model}/infer", "/v1/jobs"]
OF_MODELS = [f'model="{model}",version="{version}"' for model, version in MODELS]

# Of each family the labels of its series; their figures follow from how many came before.
Families = Mapping[str, list[str]]


def label(name: str, *values: str) -> list[str]:
    return [f'{name}="{value}"' for value in values]


def each(*of: list[str]) -> list[str]:
    return [",".join(labels) for labels in itertools.product(*of)]


STATUSES = label("status", "200", "400", "429", "503")
JOB_STATUSES = label("status", "succeeded", "failed", "cancelled")
OF_NAMES = label("model", "breast-cancer", "efficientnet-lite0")
SPANS = label("outcome", "exported", "dropped")
PROCESS: Families = {
    "tiercel_cpu_seconds_total": [""],
    "tiercel_worker_resident_bytes": label("worker", "0", "1"),
    "tiercel_build_info": ['version="0.1.0",python="3.12.14",onnxruntime="1.32.0",worker_class="llhttp"'],
    "tiercel_spans_total": SPANS,
    "tiercel_log_lines_dropped_total": [""],
    "tiercel_workers": [""],
}
API: Families = PROCESS | {
    "tiercel_requests_total": each(label("route", *ROUTES), label("method", "POST"), OF_MODELS, STATUSES),
    "tiercel_request_seconds": each(label("route", *ROUTES), OF_NAMES),
    "tiercel_queue_seconds": [""],
    "tiercel_compute_input_seconds": OF_MODELS,
    "tiercel_compute_infer_seconds": OF_MODELS,
    "tiercel_compute_output_seconds": OF_MODELS,
    "tiercel_cache_seconds": OF_MODELS,
    "tiercel_overhead_seconds": label("route", *ROUTES),
    "tiercel_prediction_rows_total": OF_MODELS,
    "tiercel_prediction_cpu_seconds_total": OF_MODELS,
    "tiercel_batched_predictions_total": OF_MODELS,
    "tiercel_requests_in_flight": [""],
    "tiercel_shed_total": label("reason", "queue", "deadline", "aside"),
    "tiercel_cache_requests_total": each(
        OF_MODELS, label("outcome", "hit", "miss", "coalesced", "bypass", "refreshed", "unkept")
    ),
    "tiercel_quota_requests_total": each(label("quota", "requests", "jobs"), label("outcome", "allowed", "refused")),
    "tiercel_auth_refusals_total": label("reason", "missing", "expired", "signature", "scope"),
    "tiercel_tokens_issued_total": label("outcome", "issued", "refused"),
    "tiercel_jobs_accepted_total": OF_NAMES,
    "tiercel_model_info": each(OF_MODELS, label("digest", "sha256:0123456789abcdef")),
    "tiercel_model_load_seconds": OF_MODELS,
    "tiercel_worker_starts_total": [""],
    "tiercel_threads_per_inference": [""],
    "tiercel_workers_planned": [""],
    "tiercel_redis_available": label("redis", "cache", "queue"),
    "tiercel_redis_errors_total": label("redis", "cache"),
    "tiercel_ready": [""],
    "tiercel_series_dropped_total": [""],
    "tiercel_metrics_scrape_seconds": [""],
}
WORKER: Families = PROCESS | {
    "tiercel_jobs": label("status", "queued", "running", "succeeded", "failed", "cancelled"),
    "tiercel_jobs_oldest_queued_seconds": [""],
    "tiercel_jobs_disk_bytes": [""],
    "tiercel_jobs_disk_limit_bytes": [""],
    "tiercel_jobs_ended_total": each(OF_NAMES, JOB_STATUSES),
    "tiercel_job_rows_total": each(OF_NAMES, label("outcome", "ok", "error")),
    "tiercel_job_seconds": OF_NAMES,
    "tiercel_job_attempts_failed_total": [""],
    "tiercel_queue_refusals_total": [""],
    "tiercel_webhooks_total": label("outcome", "delivered", "failed", "given_up"),
}
REDIS = label("instance", "redis-cache:6379", "redis-queue:6379")
# As their exporters have them; instances are kept with honor_labels.
OTHERS: Families = {
    "nginx_up": [""],
    "tiercel_certificate_not_after_seconds": [""],
    "nginx_http_requests_total": [""],
    **{f"nginx_connections_{state}": [""] for state in ("reading", "writing", "waiting")},
    "redis_up": REDIS,
    "redis_memory_used_bytes": REDIS,
    "redis_memory_max_bytes": REDIS,
    "redis_connected_clients": REDIS,
    "redis_commands_processed_total": REDIS,
    "redis_keyspace_hits_total": REDIS,
    "redis_keyspace_misses_total": REDIS,
    "redis_evicted_keys_total": REDIS,
    "node_cpu_seconds_total": each(label("cpu", "0", "1"), label("mode", "idle", "user", "system")),
    "node_memory_MemAvailable_bytes": [""],
    "node_memory_MemTotal_bytes": [""],
    "node_filesystem_avail_bytes": label("mountpoint", "/disk"),
    "node_filesystem_size_bytes": label("mountpoint", "/disk"),
}
BY_JOB: Mapping[str, Families] = {"api": API, "worker": WORKER, "others": OTHERS}


def exposition(families: Families, seconds: float) -> str:
    """What was counted in so many seconds, in Prometheus' text format."""
    return "".join(_family(name, labels, seconds) for name, labels in families.items())


def _family(name: str, series: list[str], seconds: float) -> str:
    kind = "counter" if name.endswith("_total") else "gauge"
    if name.startswith("tiercel_") and name.endswith("_seconds") and name not in GAUGES:
        kind = "histogram"
    lines = [f"# HELP {name} As if.", f"# TYPE {name} {kind}"]
    for n, labels in enumerate(series, 1):
        if kind == "histogram":
            lines += _histogram(name, labels, n * seconds)
        else:
            lines.append(f"{name}{{{labels}}} {n * seconds if kind == 'counter' else GAUGES.get(name, float(n))}")
    return "\n".join([*lines, ""])


def _histogram(name: str, labels: str, count: float) -> Iterator[str]:
    """A tenth in each of the first buckets."""
    comma = "," if labels else ""
    buckets = JOB_BUCKETS if name == "tiercel_job_seconds" else BUCKETS
    for n, bound in enumerate(buckets, 1):
        yield f'{name}_bucket{{{labels}{comma}le="{bound}"}} {int(count * min(1, n / 10))}'
    yield f'{name}_bucket{{{labels}{comma}le="+Inf"}} {int(count)}'
    yield f"{name}_sum{{{labels}}} {count * 0.01}"
    yield f"{name}_count{{{labels}}} {int(count)}"


GAUGES = {
    "tiercel_model_load_seconds": 0.2,
    "tiercel_metrics_scrape_seconds": 0.004,
    "tiercel_jobs_oldest_queued_seconds": 12.0,
    "tiercel_certificate_not_after_seconds": time.time() + 80 * 86400,
    "tiercel_build_info": 1.0,
    "tiercel_model_info": 1.0,
    "node_filesystem_size_bytes": 2.0,
}


@contextmanager
def served() -> Iterator[int]:
    """On this port of the loopback address, what each job has at /JOB."""
    began = time.monotonic() - 1

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = exposition(BY_JOB[self.path.removeprefix("/")], time.monotonic() - began).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
