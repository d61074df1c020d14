"""Batch jobs: how many wait, how fast they go, how they end."""

from monitoring.dashboards.panels import graph, rate, stat

SUBMISSIONS = 'route="/v1/jobs",method="POST"'
DURATIONS = "sum by (le, model) (increase(tiercel_job_seconds_bucket[1h]))"

ROWS = [
    [
        stat(
            "Queued",
            "Jobs that no worker has begun.",
            "none",
            'max(tiercel_jobs{status="queued"})',
        ),
        stat("Running", "Jobs that a worker has in its hands.", "none", 'max(tiercel_jobs{status="running"})'),
        stat(
            "Oldest queued",
            "How long the job that has waited for the longest has. From a quarter of an hour on: alert JobsWait.",
            "s",
            "max(tiercel_jobs_oldest_queued_seconds)",
            steps=((None, "green"), (300, "orange"), (900, "red")),
        ),
        stat(
            "Disk used",
            "By jobs and their results, of TIERCEL_MAX_JOBS_BYTES. When it is full no job is accepted.",
            "percentunit",
            "max(tiercel_jobs_disk_bytes) / max(tiercel_jobs_disk_limit_bytes)",
            steps=((None, "green"), (0.75, "orange"), (0.9, "red")),
        ),
    ],
    [
        graph(
            "Jobs",
            "In the store, by state: those that ended are there until their results are removed.",
            "none",
            {"{{status}}": "max by (status) (tiercel_jobs)"},
        ),
        graph(
            "Rows",
            "Rows worked on per second; error: the row is wrong, and has that as its result.",
            "ops",
            {"{{model}} {{outcome}}": rate("tiercel_job_rows_total", "model, outcome")},
            stacked=True,
        ),
    ],
    [
        graph(
            "Handed over and ended",
            "Jobs per minute: what became of submissions, how many were accepted for each model, and how they ended.",
            "none",
            {
                "submission {{status}}": f"60 * {rate('tiercel_requests_total', 'status', SUBMISSIONS)}",
                "accepted {{model}}": f"60 * {rate('tiercel_jobs_accepted_total', 'model')}",
                "{{status}} {{model}}": f"60 * {rate('tiercel_jobs_ended_total', 'model, status')}",
            },
        ),
        graph(
            "How long jobs take",
            "From when a worker begins until the last row is done. Over an hour, as jobs are few.",
            "s",
            {
                "{{model}} p50": f"histogram_quantile(0.5, {DURATIONS})",
                "{{model}} p90": f"histogram_quantile(0.9, {DURATIONS})",
            },
        ),
        graph(
            "Attempts, queue and webhooks",
            "In an hour: attempts in which a worker died, what was found on the queue that is not ours, and what "
            "became of webhooks. All but delivered should be 0.",
            "none",
            {
                "attempts failed": "sum(increase(tiercel_job_attempts_failed_total[1h]))",
                "not ours": "sum(increase(tiercel_queue_refusals_total[1h]))",
                "webhook {{outcome}}": "sum by (outcome) (increase(tiercel_webhooks_total[1h]))",
            },
        ),
    ],
]
