"""The batch worker's process: `python -m batch_worker.main`."""

import atexit
import functools
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import rq
import structlog
from redis import Redis
from redis.exceptions import RedisError
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer

from batch_worker import tasks
from batch_worker.housekeeping import Housekeeper
from batch_worker.metrics import serve_metrics
from batch_worker.models import Models
from batch_worker.runner import Runner
from batch_worker.scheduling import come_last
from batch_worker.webhooks import WebhookSender
from inference_core.job_queue import QUEUE, RUN_JOB, connect, open_queue
from inference_core.jobs import JobStore
from inference_core.model import load_model
from inference_core.repository import Repository
from inference_core.settings import Settings, SettingsError, check_readable, read_secret, read_settings
from inference_core.watchdog import Watchdog
from observability.families import QUEUE_REFUSALS
from observability.logs import configure_logging
from observability.tracing import open_tracer

# SECURITY: what is on the queue is data in Redis, and RQ would import and call any function that it names.
TASKS = frozenset({RUN_JOB})
# Seconds in which RQ notices what has gone; with its defaults, a job whose machine died waits for 7 minutes.
WORKER_TTL, MONITORING_INTERVAL, MAINTENANCE_INTERVAL = 30, 5, 10
BEAT_SECONDS, BEAT_TIMEOUT_SECONDS = 5.0, 0.2
# It has other things to do than to wait for Redis.
HOUSEKEEPING_TIMEOUT_SECONDS = 1.0

log = structlog.get_logger()


class QueuedJob(Job):
    """A job on the queue. One whose record cannot be read is none, instead of the end of the worker."""

    def restore(self, raw_data: Any) -> None:
        try:
            super().restore(raw_data)
        except Exception as error:  # RQ trusts what it reads
            log.error("a job was refused", job=self.id, reason=str(error))
            QUEUE_REFUSALS.of().add()
            raise NoSuchJobError(str(error)) from None

    def fault(self) -> str | None:
        """SECURITY: callbacks and webhooks are functions and addresses as well, of whoever wrote them."""
        try:
            name = self.func_name
        except DeserializationError:
            return "expected JSON, got something else"
        if name not in TASKS:
            return f"expected one of {sorted(TASKS)}, got {name!r}"
        if self._success_callback_name or self._failure_callback_name or self._stopped_callback_name or self.webhooks:
            return "expected neither callbacks nor webhooks"
        return None


class BatchWorker(rq.SimpleWorker):
    """One process that keeps its models: a session of ONNX Runtime does not survive the fork of RQ's own workers.

    `pulse` is a Redis that is not waited for.
    """

    job_class = QueuedJob
    pulse: "Redis"
    _next_beat = 0.0

    def perform_job(self, job: Job, queue: rq.Queue, execution: Execution) -> bool:
        reason = job.fault() if isinstance(job, QueuedJob) else "expected a job of ours"
        if reason is None:
            return super().perform_job(job, queue, execution)
        log.error("a job was refused", job=job.id, reason=reason)
        QUEUE_REFUSALS.of().add()
        job.webhooks, job.retries_left = [], None
        self.handle_job_failure(job, queue, exc_string=reason, execution=execution)
        return False

    def is_stopping(self) -> bool:
        return self._stop_requested

    def set_shutdown_requested_date(self) -> None:
        """Nobody reads it, and a job that is to stop does not wait for Redis."""

    def beat(self) -> None:
        """A sign of life in the middle of a job, for whom a health check asks Redis."""
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + BEAT_SECONDS
            with suppress(RedisError), self.pulse.pipeline() as pipeline:  # the job goes on without
                self.heartbeat(pipeline=pipeline)
                pipeline.execute()


def main() -> str | None:
    try:
        settings = read_settings(os.environ)
        for name in ("queue_url", "jobs_dir"):
            if not getattr(settings, name):
                raise SettingsError(f"TIERCEL_{name.upper()}: expected the one that the API has, got nothing")
        if settings.webhook_hosts and not settings.webhook_secret_file:
            raise SettingsError(
                "TIERCEL_WEBHOOK_SECRET_FILE: expected one, as TIERCEL_WEBHOOK_HOSTS is set, got nothing"
            )
        check_readable("webhook_secret_file", settings.webhook_secret_file)
        configure_logging(settings.log_level, "worker")
        if settings.metrics_bind:
            serve_metrics(settings.metrics_bind)
        worker = make_worker(settings)
    except SettingsError as error:
        return f"tiercel: {error}"
    come_last(settings.batch_scheduling)
    # Of this name there is nobody else: what is there was killed, and RQ would wait for it to expire.
    worker.connection.delete(worker.key)
    worker.work()
    return None


def make_worker(settings: Settings) -> BatchWorker:
    """A worker that is called like its container, so that a health check can ask Redis for it; and its housekeeper."""
    secret = read_secret(settings.queue_password_file)
    redis = connect(settings.queue_url, secret, None)
    worker = BatchWorker(
        [QUEUE],
        name=socket.gethostname(),
        connection=redis,
        serializer=JSONSerializer,  # SECURITY: RQ's default, pickle, runs what it reads
        worker_ttl=WORKER_TTL,
        job_monitoring_interval=MONITORING_INTERVAL,
        maintenance_interval=MAINTENANCE_INTERVAL,
    )
    worker.pulse = connect(settings.queue_url, secret, BEAT_TIMEOUT_SECONDS)
    store = JobStore(Path(settings.jobs_dir), settings.max_jobs, settings.max_jobs_bytes)
    load: Any = functools.partial(load_model, intra_op_threads=1)
    most = settings.max_model_bytes
    models = Models(Repository(Path(settings.models_dir), load, most, settings.strict_keys_file), load, most)
    watchdog = Watchdog(settings.hang_grace_ms / 1000)
    watchdog.start()
    # Of jobs, all are kept: they are few, and long.
    tracer = open_tracer(settings.trace_endpoint, 1.0, 0.0, "tiercel-worker")
    atexit.register(tracer.flush)
    tasks.runner = Runner(store, models, watchdog, settings, worker.is_stopping, worker.beat, tracer)
    if settings.webhook_secret_file:
        secret_of_hooks = read_secret(settings.webhook_secret_file)
        WebhookSender(store, secret_of_hooks, may_be_private=settings.webhook_private, tracer=tracer).start()
    queue = open_queue(settings.queue_url, secret, HOUSEKEEPING_TIMEOUT_SECONDS)
    Housekeeper(store, queue, settings.jobs_keep_seconds, settings.jobs_keep_failed_seconds).start()
    return worker


if __name__ == "__main__":
    sys.exit(main())
