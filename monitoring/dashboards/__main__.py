"""Grafana's dashboards, a module each. `make dashboards` writes them to grafana/dashboards/*.json, which Grafana reads.

Every panel says what it shows and what to make of it; `{{label}}` in a legend is Grafana's own syntax. Whether each
query returns something on a stack that runs tells `python -m monitoring.expressions`, and how it looks
`python -m monitoring.contact_sheet`.
"""

import json
from pathlib import Path

from monitoring.dashboards import edge_and_redis, jobs, models, overview, workers
from monitoring.dashboards.layout import dashboard

FOLDER = Path(__file__).parents[1] / "grafana/dashboards"


def files() -> dict[str, str]:
    """Their names and contents."""
    every = [
        dashboard("overview", "Overview", overview.ROWS),
        dashboard("models", "Models", models.ROWS, [models.MODEL]),
        dashboard("jobs", "Jobs", jobs.ROWS),
        dashboard("edge-and-redis", "Edge and Redis", edge_and_redis.ROWS),
        dashboard("workers", "Workers", workers.ROWS),
    ]
    return {f"{each['uid']}.json": json.dumps(each, indent=2) + "\n" for each in every}


if __name__ == "__main__":
    for name, content in files().items():
        (FOLDER / name).write_text(content)
