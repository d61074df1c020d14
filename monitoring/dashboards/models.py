"""What each model costs, and how its versions compare."""

from monitoring.dashboards.panels import (
    FAILED,
    OBJECTIVES,
    PREDICTIONS,
    PROMETHEUS,
    SLOW,
    graph,
    mean,
    quantile,
    rate,
    table,
)

OF_MODEL = 'model=~"$model"'
ANSWERED = 'status="200"'
OF_VERSION = rate("tiercel_requests_total", "model, version", f"{PREDICTIONS},{OF_MODEL}")
OF_VERSION_FAILED = rate("tiercel_requests_total", "model, version", f'{PREDICTIONS},{OF_MODEL},status=~"5.."')
CPU = rate("tiercel_prediction_cpu_seconds_total", "model, version", OF_MODEL)
ROWS_PREDICTED = rate("tiercel_prediction_rows_total", "model, version", OF_MODEL)
STAGES = {
    "queue": mean("tiercel_queue_seconds"),
    "input": mean("tiercel_compute_input_seconds", OF_MODEL),
    "cache": mean("tiercel_cache_seconds", OF_MODEL),
    "inference": mean("tiercel_compute_infer_seconds", OF_MODEL),
    "output": mean("tiercel_compute_output_seconds", OF_MODEL),
    "overhead": mean("tiercel_overhead_seconds", PREDICTIONS),
}

ROWS = [
    [
        graph(
            "Predictions",
            "Requests for predictions per second, by model, whatever the answer.",
            "reqps",
            {"{{model}}": rate("tiercel_requests_total", "model", f"{PREDICTIONS},{OF_MODEL}")},
        ),
        graph(
            "Latency by model",
            "From the arrival at NGINX until the answer is made; the line is the objective.",
            "s",
            {
                "{{model}} p50": quantile(0.5, "tiercel_request_seconds", "model", f"{PREDICTIONS},{OF_MODEL}"),
                "{{model}} p99": quantile(0.99, "tiercel_request_seconds", "model", f"{PREDICTIONS},{OF_MODEL}"),
            },
            steps=((None, "green"), (OBJECTIVES["latency_seconds"], "red")),
            links=[SLOW],
        ),
        graph(
            "Latency by stage",
            "Where the time of a prediction goes, on average. Queue and overhead are of all models. Not every request"
            " has every stage: what comes from the cache has no inference.",
            "s",
            STAGES,
            stacked=True,
            links=[SLOW],
        ),
    ],
    [
        graph(
            "Versions side by side: inference",
            "Of ONNX Runtime alone, p50 and p99. After a change of versions compare the new line with the old one.",
            "s",
            {
                "{{model}} {{version}} p50": quantile(0.5, "tiercel_compute_infer_seconds", "model, version", OF_MODEL),
                "{{model}} {{version}} p99": quantile(
                    0.99, "tiercel_compute_infer_seconds", "model, version", OF_MODEL
                ),
            },
        ),
        graph(
            "Versions side by side: failed",
            "Share of a version's requests that were answered with a 5xx.",
            "percentunit",
            {
                # Where none has failed, there is none to divide.
                "{{model}} {{version}}": f"({OF_VERSION_FAILED} or 0 * {OF_VERSION}) / {OF_VERSION}"
            },
            links=[FAILED],
        ),
        graph(
            "Versions side by side: cost of 1,000 rows",
            "CPU seconds of the workers for a thousand predicted rows; NGINX and Redis come on top. Times the price "
            "of a CPU second it is money.",
            "s",
            {"{{model}} {{version}}": f"1000 * {CPU} / {ROWS_PREDICTED}"},
        ),
    ],
    [
        graph(
            "Rows",
            "Rows predicted per second; a request may have many.",
            "ops",
            {"{{model}} {{version}}": ROWS_PREDICTED},
        ),
        graph(
            "Rows in a request",
            "On average. One row at a time costs a model that has little to compute the most.",
            "none",
            {
                "{{model}}": f"{rate('tiercel_prediction_rows_total', 'model', OF_MODEL)} "
                f"/ {rate('tiercel_requests_total', 'model', f'{PREDICTIONS},{OF_MODEL},{ANSWERED}')}"
            },
        ),
        graph(
            "Cache",
            "What became of look-ups. hit: remembered; coalesced: waited for another that was the same; bypass: the "
            "model is not cached, or costs less than to look; request: the client asked for a new answer; error: "
            "Redis.",
            "ops",
            {"{{model}} {{outcome}}": rate("tiercel_cache_requests_total", "model, outcome", OF_MODEL)},
            stacked=True,
        ),
    ],
    [
        table(
            "What is served",
            "Every model with its version and the digest of its manifest, by which clients can tell what answered "
            "them. The value is the number of API containers that serve it.",
            "none",
            f"count by (model, version, digest) (tiercel_model_info{{{OF_MODEL}}})",
        ),
        table(
            "Load time",
            "What the slowest worker took to load and warm the version. TIERCEL_LOAD_TIMEOUT_SECONDS bounds it.",
            "s",
            f"max by (model, version) (tiercel_model_load_seconds{{{OF_MODEL}}})",
        ),
    ],
]

MODEL = {
    "name": "model",
    "label": "Model",
    "type": "query",
    "datasource": PROMETHEUS,
    "query": "label_values(tiercel_model_info, model)",
    "refresh": 2,
    "includeAll": True,
    "allValue": ".*",
    "multi": True,
    "current": {"text": "All", "value": "$__all"},
}
