"""How operators learn what goes on: log lines, and what else joins them. Knows nothing of predictions."""
