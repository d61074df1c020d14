"""The processes: how many, how busy, how large."""

from monitoring.dashboards.panels import GOOD_IF_ZERO, PREDICTIONS, SLOW, graph, quantile, rate, stat, table

ROWS = [
    [
        stat(
            "Workers missing",
            "Of those that the thread plan has. For five minutes it is the alert WorkersMissing.",
            "none",
            "sum(tiercel_workers_planned) - sum(tiercel_workers and tiercel_workers_planned)",
            steps=GOOD_IF_ZERO,
        ),
        stat("Threads of one inference", "As the thread plan has it.", "none", "max(tiercel_threads_per_inference)"),
        stat(
            "Starts in an hour",
            "Of workers, after the first of each container. They are replaced when they die, and by a reload.",
            "none",
            "sum(increase(tiercel_worker_starts_total[1h]))",
            steps=((None, "green"), (3, "orange"), (10, "red")),
        ),
        stat(
            "Series dropped",
            "In an hour. From one on figures are missing: alert CardinalityHigh.",
            "none",
            "sum(increase(tiercel_series_dropped_total[1h]))",
            steps=GOOD_IF_ZERO,
        ),
        stat(
            "Log lines dropped",
            "In an hour. Whoever reads the log is behind: alert LogLinesDropped.",
            "none",
            "sum(increase(tiercel_log_lines_dropped_total[1h]))",
            steps=GOOD_IF_ZERO,
        ),
        stat(
            "Spans dropped",
            "Share of the spans of the last hour that did not reach Jaeger.",
            "percentunit",
            'sum(increase(tiercel_spans_total{outcome="dropped"}[1h])) / sum(increase(tiercel_spans_total[1h]))',
            steps=((None, "green"), (0.01, "red")),
        ),
    ],
    [
        graph(
            "In flight",
            "Requests that have been read and not answered. Each worker computes one at a time.",
            "none",
            {"{{instance}}": "sum by (instance) (tiercel_requests_in_flight)"},
        ),
        graph(
            "Queue",
            "From the arrival at NGINX until a worker begins. It grows first when there are too few workers.",
            "s",
            {"p50": quantile(0.5, "tiercel_queue_seconds"), "p99": quantile(0.99, "tiercel_queue_seconds")},
            links=[SLOW],
        ),
        graph(
            "Overhead",
            "What a request takes in a worker beyond its stages: routing, tokens, JSON, compression. By route, p99.",
            "s",
            {"{{route}}": quantile(0.99, "tiercel_overhead_seconds", "route", PREDICTIONS)},
        ),
    ],
    [
        graph(
            "Memory",
            "Resident, of each worker. A line that only climbs ends with the kernel's SIGKILL.",
            "bytes",
            {"{{job}} {{instance}} {{worker}}": "tiercel_worker_resident_bytes"},
        ),
        graph(
            "CPU",
            "Processors that each container keeps busy.",
            "none",
            {"{{job}} {{instance}}": rate("tiercel_cpu_seconds_total", "job, instance")},
        ),
        graph(
            "Exposition",
            "What it took to collect the figures of a container the last time Prometheus asked.",
            "s",
            {"{{job}} {{instance}}": "tiercel_metrics_scrape_seconds"},
        ),
    ],
    [
        table(
            "Builds",
            "What runs, and in how many containers. Two rows of one job: a roll-out is under way, or has stopped half"
            " way.",
            "none",
            "count by (job, version, python, onnxruntime, worker_class) (tiercel_build_info)",
        ),
    ],
]
