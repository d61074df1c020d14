"""Is it well? Requests, errors and duration, and what is left of the error budgets."""

from monitoring.dashboards.panels import (
    BUDGET,
    FAILED,
    GOOD_IF_ONE,
    GOOD_IF_ZERO,
    OBJECTIVES,
    PREDICTIONS,
    SLOW,
    graph,
    quantile,
    rate,
    stat,
)

ROWS = [
    [
        stat(
            f"Availability: budget left of {OBJECTIVES['window_days']} days",
            f"Of the requests that may fail (5xx) with an objective of {OBJECTIVES['availability']:.4g}, the share "
            "that has not. Below 0 the objective is missed.",
            "percentunit",
            'slo:budget_left:ratio{slo="availability"}',
            steps=BUDGET,
            links=[FAILED],
        ),
        stat(
            f"Latency: budget left of {OBJECTIVES['window_days']} days",
            f"Of the predictions that may take more than {OBJECTIVES['latency_seconds']:g} s with an objective of "
            f"{OBJECTIVES['latency_share']:.4g} within it, the share that has not.",
            "percentunit",
            'slo:budget_left:ratio{slo="latency"}',
            steps=BUDGET,
            links=[SLOW],
        ),
        stat(
            "Alerts firing",
            "What they mean and what to do: monitoring/RUNBOOK.md. Which: Alerting, or the address of Alertmanager.",
            "none",
            'count(ALERTS{alertstate="firing"}) or vector(0)',
            steps=GOOD_IF_ZERO,
        ),
        stat(
            "API",
            "Whether every API container is ready: each has all models loaded and its workers alive.",
            "none",
            "min(tiercel_ready)",
            steps=GOOD_IF_ONE,
            names={"0": "not ready", "1": "ready"},
        ),
        stat(
            "Targets down",
            "Of all that Prometheus asks. Which: Edge and Redis.",
            "none",
            "count(up == 0) or vector(0)",
            steps=GOOD_IF_ZERO,
        ),
    ],
    [
        graph(
            "Requests by status",
            "Answers of the API per second, without health checks. 429 is a client over its quota, 503 ours. What "
            "NGINX refuses by itself is not here.",
            "reqps",
            {"{{status}}": rate("tiercel_requests_total", "status", 'route!~"/v2/health/.*|/metrics"')},
            stacked=True,
            links=[FAILED],
        ),
        graph(
            "Predictions: latency",
            "From the arrival at NGINX until the answer is made; the line is the objective.",
            "s",
            {
                "p50": quantile(0.5, "tiercel_request_seconds", where=PREDICTIONS),
                "p90": quantile(0.9, "tiercel_request_seconds", where=PREDICTIONS),
                "p99": quantile(0.99, "tiercel_request_seconds", where=PREDICTIONS),
            },
            steps=((None, "green"), (OBJECTIVES["latency_seconds"], "red")),
            links=[SLOW],
        ),
    ],
    [
        graph(
            "Budgets: burn rate",
            "1 uses up the budget in just its window; the lines are where a ticket is written and where somebody is "
            "woken up.",
            "none",
            {"{{slo}}, 1 h": "slo:burn_rate:1h", "{{slo}}, 6 h": "slo:burn_rate:6h"},
            steps=((None, "green"), (1, "orange"), (14.4, "red")),
        ),
        graph(
            "Turned away",
            "Requests per second that were refused without being tried: the queue or the connections are full (503), "
            "the deadline had passed (504), the client was too slow (408). None is good.",
            "reqps",
            {"{{reason}}": rate("tiercel_shed_total", "reason")},
            stacked=True,
        ),
        graph(
            "CPU",
            "Busy, of what there is; and what API and batch worker take of it, in processors.",
            "none",
            {
                "machine": 'sum(rate(node_cpu_seconds_total{mode!~"idle|iowait"}[$__rate_interval]))',
                "{{job}}": rate("tiercel_cpu_seconds_total", "job"),
                "processors": 'count(node_cpu_seconds_total{mode="idle"})',
            },
        ),
    ],
]
