"""What stands before the API and beside it, and what it stands on."""

from monitoring.dashboards.panels import GOOD_IF_ONE, RATE, Panel, graph, rate, stat

ROWS = [
    [
        Panel(
            "stat",
            "Targets",
            "What Prometheus asks. NGINX and Redis count as down also when only their exporter answers.",
            "none",
            {
                "{{job}}": 'min by (job) (up{job!~"nginx|redis"})',
                "nginx": "min(nginx_up)",
                "{{instance}}": "redis_up",
            },
            steps=GOOD_IF_ONE,
            names={"0": "down", "1": "up"},
        ),
    ],
    [
        stat(
            "Certificate: days left",
            "Of the one that NGINX presents. `make certs` renews the development certificate.",
            "d",
            "min(tiercel_certificate_not_after_seconds - time()) / 86400",
            steps=((None, "red"), (3, "orange"), (21, "green")),
        ),
        stat(
            "Disk free",
            "Of the file system that holds all volumes.",
            "percentunit",
            "min(node_filesystem_avail_bytes / node_filesystem_size_bytes)",
            steps=((None, "red"), (0.05, "orange"), (0.15, "green")),
        ),
        stat(
            "Memory free",
            "Of the machine; what can be had without swapping.",
            "percentunit",
            "min(node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes)",
            steps=((None, "red"), (0.05, "orange"), (0.15, "green")),
        ),
        stat(
            "Redis, as workers see it",
            "Whether all workers reach it; one that does not computes everything and counts quotas by itself.",
            "none",
            "min by (redis) (tiercel_redis_available)",
            "{{redis}}",
            steps=GOOD_IF_ONE,
            names={"0": "not reached", "1": "reached"},
        ),
    ],
    [
        graph(
            "NGINX: requests",
            "Per second. What NGINX has more than the API it answered by itself: its limits, its checks, or no API.",
            "reqps",
            {
                "NGINX": f"sum(rate(nginx_http_requests_total[{RATE}]))",
                "API": f"sum(rate(tiercel_requests_total[{RATE}]))",
            },
        ),
        graph(
            "NGINX: connections of clients",
            "Waiting: kept alive, with no request.",
            "none",
            {state: f"nginx_connections_{state}" for state in ("reading", "writing", "waiting")},
        ),
        graph(
            "Refused for a reason of the client's",
            "Per second: over a quota (429), without a token that is good for it (401, 403), or not given one (401).",
            "reqps",
            {
                "quota {{quota}}": rate("tiercel_quota_requests_total", "quota", 'outcome="refused"'),
                "token {{reason}}": rate("tiercel_auth_refusals_total", "reason"),
                "no token issued": rate("tiercel_tokens_issued_total", "outcome", 'outcome="refused"'),
            },
            stacked=True,
        ),
    ],
    [
        graph(
            "Redis: memory",
            "The cache may fill its own, and evicts what is used least; the queue refuses what does not fit.",
            "bytes",
            {"{{instance}}": "redis_memory_used_bytes", "{{instance}} limit": "redis_memory_max_bytes > 0"},
        ),
        graph(
            "Redis: commands",
            "Per second. Workers ask for models that cost more than to ask, and for quotas.",
            "ops",
            {"{{instance}}": f"rate(redis_commands_processed_total[{RATE}])"},
        ),
        graph(
            "Redis: cache",
            "Look-ups that found something and that did not, and entries that had to go for others, per second. "
            "Errors are those that workers met.",
            "ops",
            {
                "hits": f'rate(redis_keyspace_hits_total{{instance=~"redis-cache.*"}}[{RATE}])',
                "misses": f'rate(redis_keyspace_misses_total{{instance=~"redis-cache.*"}}[{RATE}])',
                "evicted": f'rate(redis_evicted_keys_total{{instance=~"redis-cache.*"}}[{RATE}])',
                "errors": f"sum(rate(tiercel_redis_errors_total[{RATE}]))",
            },
        ),
        graph(
            "Redis: clients",
            "Connections that are open, the exporter's among them.",
            "none",
            {"{{instance}}": "redis_connected_clients"},
        ),
    ],
]
