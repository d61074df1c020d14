"""The batch worker with a real Redis: it takes JSON only, and runs nothing that is not on its list."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import rq
from redis import Redis
from rq.job import JobStatus
from rq.serializers import JSONSerializer
from servers import wait_until

from batch_worker.main import QUEUE, connect
from inference_api.serve import _redis
from inference_core.settings import Settings


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with _redis(tmp_path / "redis.sock"):
        wait_until((tmp_path / "redis.sock").is_socket, "Redis has started")
        yield f"unix://{tmp_path}/redis.sock"


def test_a_function_that_is_not_on_the_list_is_not_called(url: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    with Redis.from_url(url) as redis:
        job = rq.Queue(QUEUE, connection=redis, serializer=JSONSerializer).enqueue("os.mkdir", str(victim))
        worker = connect(Settings(queue_url=url))
        worker.work(burst=True)
        worker.connection.close()
        assert job.get_status() == JobStatus.FAILED
    assert not victim.exists()


def test_a_pickle_on_the_queue_is_not_run(url: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    with Redis.from_url(url) as redis:
        rq.Queue(QUEUE, connection=redis).enqueue("os.mkdir", str(victim))  # with RQ's default serializer
        worker = connect(Settings(queue_url=url))
        worker.work(burst=True)
        worker.connection.close()
    assert not victim.exists()


def test_it_can_be_seen_in_redis_while_it_lives_and_not_after_sigterm(url: str) -> None:
    command = [sys.executable, "-m", "batch_worker.main"]
    process = subprocess.Popen(command, env=os.environ | {"TIERCEL_QUEUE_URL": url}, stderr=subprocess.DEVNULL)
    try:
        with Redis.from_url(url) as redis:
            wait_until(lambda: [redis.hget(key, "state") for key in redis.keys("rq:worker:*")] == [b"idle"], "it waits")
            process.terminate()
            assert process.wait(20) == 0
            assert redis.smembers("rq:workers") == set()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "TIERCEL_QUEUE_URL: expected the URL of the queue's Redis, got nothing"),
        ({"TIERCEL_NO_SUCH": "1"}, "TIERCEL_NO_SUCH: no such setting"),
    ],
)
def test_settings_that_do_not_fit_stop_it_with_their_name(variables: dict[str, str], message: str) -> None:
    command = [sys.executable, "-m", "batch_worker.main"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr
