"""The batch worker's process: `python -m batch_worker.main`."""

import os
import socket
import sys

import rq
import structlog
from redis import Redis
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer

from inference_core.settings import Settings, SettingsError, read_secret, read_settings
from inference_core.telemetry import configure_logging

QUEUE = "jobs"
# SECURITY: the name of a job's function is data in Redis, and RQ would import and call any.
TASKS: frozenset[str] = frozenset()
# Seconds in which RQ notices what has gone; with its defaults, a job whose machine died waits for 7 minutes.
WORKER_TTL, MONITORING_INTERVAL, MAINTENANCE_INTERVAL = 30, 5, 10

log = structlog.get_logger()


class BatchWorker(rq.SimpleWorker):
    def perform_job(self, job: Job, queue: rq.Queue, execution: Execution) -> bool:
        if job.func_name in TASKS:
            return super().perform_job(job, queue, execution)
        reason = f"expected one of {sorted(TASKS)}, got {job.func_name!r}"
        log.error("a job was refused", job=job.id, reason=reason)
        self.handle_job_failure(job, queue, exc_string=reason, execution=execution)
        return False


def main() -> str | None:
    try:
        settings = read_settings(os.environ)
        if not settings.queue_url:
            raise SettingsError("TIERCEL_QUEUE_URL: expected the URL of the queue's Redis, got nothing")
    except SettingsError as error:
        return f"tiercel: {error}"
    configure_logging(settings.log_level)
    worker = connect(settings)
    # Of this name there is nobody else: what is there was killed, and RQ would wait for it to expire.
    worker.connection.delete(worker.key)
    worker.work()
    return None


def connect(settings: Settings) -> BatchWorker:
    """A worker that is called like its container, so that a health check can ask Redis for it."""
    password = read_secret(settings.queue_password_file)
    return BatchWorker(
        [QUEUE],
        name=socket.gethostname(),
        connection=Redis.from_url(settings.queue_url, **({"password": password} if password else {})),
        serializer=JSONSerializer,  # SECURITY: RQ's default, pickle, runs what it reads
        worker_ttl=WORKER_TTL,
        job_monitoring_interval=MONITORING_INTERVAL,
        maintenance_interval=MAINTENANCE_INTERVAL,
    )


if __name__ == "__main__":
    sys.exit(main())
