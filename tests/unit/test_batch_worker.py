"""The batch worker's process with a real Redis: it takes JSON only, and runs nothing that is not on its list."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rq
from batch import Worker, lines, make_store, read_lines, submit
from model_zoo import Zoo
from redis_server import RedisServer
from rq.job import JobStatus
from rq.serializers import JSONSerializer
from servers import wait_until

from inference_core.job_queue import QUEUE, JobQueue
from inference_core.jobs import JobStore
from inference_core.manifest import read_package


class Stage:
    """A store of jobs, a queue in a real Redis, and the model "scale"."""

    def __init__(self, redis: RedisServer, store: JobStore, zoo: Zoo) -> None:
        self.redis, self.store, self.zoo = redis, store, zoo
        self.queue = JobQueue(redis.admin)
        self.digest = read_package(zoo.scale(), 1 << 30).digest

    def worker(self, **settings: Any) -> Worker:
        return Worker(self.redis.url, self.store.root, self.zoo.root, **settings)

    def works(self) -> None:
        """A job that is put on the queue now is done."""
        stored = submit(self.store, lines([[1, 2, 3]]), model="scale", version="1", digest=self.digest)
        assert self.queue.enqueue("anna", stored.folder.name)
        wait_until(lambda: stored.state().status == "succeeded", "the job is done")
        assert read_lines(stored.results.read_bytes()) == [{"index": 0, "prediction": [2, 4, 6]}]


@pytest.fixture
def stage(tmp_path: Path, zoo: Zoo) -> Iterator[Stage]:
    with RedisServer(tmp_path) as redis:
        yield Stage(redis, make_store(tmp_path / "jobs"), zoo)


def test_a_function_that_is_not_on_the_list_is_not_called(stage: Stage, tmp_path: Path) -> None:
    """It is said so, and the worker lives on."""
    victim = tmp_path / "victim"
    with stage.worker() as worker:
        queue = rq.Queue(QUEUE, connection=stage.redis.admin, serializer=JSONSerializer)
        job = queue.enqueue("os.mkdir", str(victim))
        wait_until(lambda: job.get_status() == JobStatus.FAILED, "the job is refused")
        stage.works()
        assert "expected one of ['batch_worker.tasks.run_job'], got 'os.mkdir'" in worker.log()
    assert not victim.exists()


def test_a_pickle_on_the_queue_is_not_run(stage: Stage, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    with stage.worker():
        rq.Queue(QUEUE, connection=stage.redis.admin).enqueue("os.mkdir", str(victim))  # with RQ's default serializer
        stage.works()
    assert not victim.exists()


@pytest.mark.parametrize("arguments", [(), ("anna",), ("anna", "nobody"), ("..", "keys"), (1, 2), ("a", "b", "c")])
def test_a_job_that_is_none_is_no_end_of_the_worker(stage: Stage, arguments: tuple[Any, ...]) -> None:
    with stage.worker():
        queue = rq.Queue(QUEUE, connection=stage.redis.admin, serializer=JSONSerializer)
        queue.enqueue("batch_worker.tasks.run_job", *arguments)
        stage.works()


def test_it_can_be_seen_in_redis_while_it_lives_and_not_after_sigterm(stage: Stage) -> None:
    redis = stage.redis.admin
    with stage.worker() as worker:
        wait_until(lambda: [redis.hget(key, "state") for key in redis.keys("rq:worker:*")] == [b"idle"], "it waits")
        assert worker.stop() == 0
        assert redis.smembers("rq:workers") == set()


def test_one_that_was_killed_is_no_hindrance_to_its_successor(stage: Stage) -> None:
    """Which has its name, and does not wait for that to expire."""
    with stage.worker() as worker:
        worker.process.kill()
        worker.process.wait()
    with stage.worker():
        stage.works()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "TIERCEL_QUEUE_URL: expected the one that the API has, got nothing"),
        ({"TIERCEL_QUEUE_URL": "redis://a"}, "TIERCEL_JOBS_DIR: expected the one that the API has, got nothing"),
        (
            {"TIERCEL_QUEUE_URL": "redis://a", "TIERCEL_JOBS_DIR": "/a", "TIERCEL_WEBHOOK_HOSTS": "a"},
            "TIERCEL_WEBHOOK_SECRET_FILE: expected one, as TIERCEL_WEBHOOK_HOSTS is set, got nothing",
        ),
        ({"TIERCEL_NO_SUCH": "1"}, "TIERCEL_NO_SUCH: no such setting"),
    ],
)
def test_settings_that_do_not_fit_stop_it_with_their_name(variables: dict[str, str], message: str) -> None:
    command = [sys.executable, "-m", "batch_worker.main"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr
