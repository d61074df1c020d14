"""The queue of batch jobs, RQ's: it wakes up a worker. What it loses, workers find by themselves (housekeeping.py)."""

import secrets

import rq
import structlog
from redis import Redis
from redis.backoff import ConstantBackoff, NoBackoff
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import RedisError
from redis.retry import Retry
from rq.serializers import JSONSerializer

QUEUE = "jobs"
# The one function that a job on the queue may name.
RUN_JOB = "batch_worker.tasks.run_job"
# RQ's own record of a job; ours is on disk.
RECORD_SECONDS = 3600
# RQ ends what runs for longer, and ours may.
NO_TIMEOUT = -1
# A connection may have ended while it was idle: once more. Who waits for jobs waits for Redis to come back as well.
ONCE_MORE = Retry(NoBackoff(), 1, (NoConnection,))
FOR_EVER = Retry(ConstantBackoff(0.5), -1, (NoConnection,))

log = structlog.get_logger()


class JobQueue:
    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        # SECURITY: RQ's default serializer is pickle, which runs what it reads.
        self._queue = rq.Queue(QUEUE, connection=redis, serializer=JSONSerializer)

    def enqueue(self, owner: str, job_id: str) -> bool:
        """Whether a worker will be told soon; if not, the job waits until one looks by itself."""
        try:
            self._queue.enqueue(
                RUN_JOB,
                owner,
                job_id,
                # RQ's name for it; a job may be put there more than once.
                job_id=f"{job_id}_{secrets.token_hex(4)}",
                job_timeout=NO_TIMEOUT,
                result_ttl=0,
                failure_ttl=RECORD_SECONDS,
                description=job_id,
            )
        except RedisError as error:
            log.warning("a job waits until the queue is back", job=job_id, reason=str(error))
            return False
        return True

    def waiting(self) -> set[str] | None:
        """The ids of jobs that a worker will be told of; None if one cannot know."""
        try:
            return {name.partition("_")[0] for name in self._queue.job_ids}
        except RedisError:
            return None


def open_queue(url: str, password: str, timeout_seconds: float) -> JobQueue:
    return JobQueue(connect(url, password, timeout_seconds))


def connect(url: str, password: str, timeout_seconds: float | None) -> "Redis":
    """The Redis of the queue; without a timeout for who waits for jobs."""
    secret = {"password": password} if password else {}
    return Redis.from_url(
        url,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=FOR_EVER if timeout_seconds is None else ONCE_MORE,
        driver_info=None,
        **secret,
    )
