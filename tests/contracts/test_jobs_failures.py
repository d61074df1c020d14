"""Batch jobs while workers and Redis die: whatever was accepted ends, with one result for every row."""

import http.client
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest
import rq
from edge import ROOT
from model_zoo import Zoo
from msgspec.json import encode
from redis_server import RedisServer
from rq.serializers import JSONSerializer
from servers import Server, free_port, wait_until

from batch_worker.runner import MAX_ATTEMPTS
from inference_core.job_queue import QUEUE, RUN_JOB
from inference_core.jobs import State, StoredJob, new_id, owner_of

# More for a long run by hand: TIERCEL_TEST_JOBS=50.
JOBS = int(os.environ.pop("TIERCEL_TEST_JOBS", "8"))
ROWS = 600
SEED = int(os.environ.pop("TIERCEL_TEST_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
OPTIONS = [
    option
    for line in (ROOT / "docker/redis-queue.conf").read_text().splitlines()
    if line and not line.startswith("#")
    for option in (f"--{line.split()[0]}", *shlex.split(line)[1:])
]
# What some workers do before they work.
LOOKS_OFTEN = "from batch_worker import housekeeping; housekeeping.LOOK_SECONDS = 0.1"
TRIES_SOON = "from batch_worker import runner; runner.BACKOFF_SECONDS = (0.01, 0.01, 0.01)"
WRITES_LITTLE = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({128 << 10},) * 2)"
DIES_OF_POISON = """
import os, signal
from batch_worker.runner import Runner
predicted = Runner._predicted
def deadly(self, model, job, batch, pause):
    if job.model == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return predicted(self, model, job, batch, pause)
Runner._predicted = deadly
"""


class Worker:
    """A batch worker's process, in a container of its own as far as its name says; `before`: what it does first."""

    def __init__(self, name: str, folder: Path, environ: dict[str, str], *before: str) -> None:
        called = f"import socket, sys; socket.gethostname = lambda: {name!r}"
        self._code = "\n".join([called, *before, "from batch_worker.main import main; sys.exit(main())"])
        self._environ = os.environ | environ
        self._log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self._code], env=self._environ, stdout=log, stderr=log
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def log(self) -> str:
        return self._log.read_text()


class Stage:
    """An API, a Redis that keeps what it has in a file, and whoever works."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        zoo = Zoo(folder / "models")
        zoo.slow(size=300, warm_up_size=300)
        zoo.scale("scale", rows=1000)
        zoo.scale("poison")
        self._folder, self._running = folder, running
        self.redis = running.enter_context(RedisServer(folder, *OPTIONS))
        self.jobs_dir = folder / "jobs"
        self._settings = {"models_dir": zoo.root, "queue_url": self.redis.url, "jobs_dir": self.jobs_dir}
        self.server = running.enter_context(Server(worker_class="llhttp", workers=2, models=zoo.root, **self._more()))
        self.owner = self.jobs_dir / "owners" / owner_of(None)

    def worker(self, name: str, *before: str, **settings: str) -> Worker:
        environ = {f"TIERCEL_{key.upper()}": str(value) for key, value in (self._settings | settings).items()}
        return self._running.enter_context(Worker(name, self._folder, environ, *before))

    def submit(self, model: str, rows: list[list[float]]) -> str:
        lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        answer = self.server.post(f"/v1/jobs?model={model}", lines, Content_Type="application/x-ndjson")
        assert answer.status == 202, answer
        return str(answer.json()["id"])

    def job(self, job: str) -> dict[str, Any]:
        answer = self.server.get(f"/v1/jobs/{job}")
        assert answer.status == 200, answer
        described: dict[str, Any] = answer.json()
        return described

    def results(self, job: str) -> bytes:
        return self.server.get(f"/v1/jobs/{job}/results").body

    def wait_for(self, *jobs: str, meanwhile: Callable[[], None] = lambda: None, seconds: float = 60) -> list[str]:
        """Until all of them have ended; how."""

        def have_ended() -> bool:
            meanwhile()
            return all(self.job(job)["ended"] for job in jobs)

        wait_until(have_ended, f"jobs end: {[self.job(job) for job in jobs]}", seconds)
        return [self.job(job)["status"] for job in jobs]

    def lines(self) -> int:
        """Rows of all jobs that have a result."""
        return sum(path.read_bytes().count(b"\n") for path in self.owner.glob("*/results.jsonl"))

    def _more(self) -> dict[str, Any]:
        return {name: value for name, value in self._settings.items() if name != "models_dir"}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as running:
        yield Stage(tmp_path, running)


def rows(job: int, count: int = ROWS) -> list[list[float]]:
    return [[job + 1, row, 1] for row in range(count)]


def expected(job: int, count: int = ROWS) -> list[dict[str, Any]]:
    return [{"index": row, "prediction": [2.0 * (job + 1), 2.0 * row, 2.0]} for row in range(count)]


def decoded(results: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.splitlines()]


def test_every_accepted_job_ends_with_one_result_a_row_whoever_is_killed(stage: Stage) -> None:
    """Two workers and Redis, at random; killed workers are started again, as Docker does it."""
    chance = random.Random(SEED)  # noqa: S311
    workers = [stage.worker("one"), stage.worker("two")]
    calm = [stage.submit("slow", rows(number)) for number in range(JOBS)]
    assert set(stage.wait_for(*calm)) == {"succeeded"}
    # One for as many rows as a job has, so that none is killed as often as one that kills.
    points = [JOBS * ROWS + number * ROWS + chance.randrange(ROWS) for number in range(JOBS)]

    def hurt() -> None:
        if points and stage.lines() >= points[0]:
            chance.choice([*workers, stage.redis]).restart()
            del points[0]

    jobs = []
    for number in range(JOBS):
        jobs.append(stage.submit("slow", rows(number)))
        hurt()
    statuses = stage.wait_for(*jobs, meanwhile=hurt, seconds=30 + 10 * JOBS)
    assert set(statuses) == {"succeeded"}, f"seed {SEED}: {[stage.job(job) for job in jobs]}"
    for number, (undisturbed, job) in enumerate(zip(calm, jobs, strict=True)):
        assert decoded(stage.results(job)) == expected(number), f"seed {SEED}"
        assert stage.results(job) == stage.results(undisturbed), f"seed {SEED}"


def test_another_worker_takes_over_from_one_that_is_killed(stage: Stage) -> None:
    first = stage.worker("one")
    job = stage.submit("slow", rows(0))
    wait_until(lambda: 0 < stage.lines() < ROWS, "it is being worked on")
    second = stage.worker("two")
    wait_until(lambda: stage.redis.admin.exists("rq:worker:two"), "there is another one")
    first.kill()
    assert stage.wait_for(job) == ["succeeded"]
    assert decoded(stage.results(job)) == expected(0)
    assert second.is_alive()


def test_a_worker_outlives_redis_and_ends_what_it_works_on(stage: Stage) -> None:
    worker = stage.worker("one")
    job = stage.submit("slow", rows(0))
    wait_until(lambda: stage.lines() > 0, "it is being worked on")
    stage.redis.kill()
    other = stage.submit("slow", rows(1))
    assert stage.wait_for(job) == ["succeeded"]
    stage.redis.start()
    assert stage.wait_for(other) == ["succeeded"]
    assert decoded(stage.results(other)) == expected(1)
    assert worker.is_alive()


def test_jobs_wait_on_the_queue_until_redis_and_a_worker_are_back(stage: Stage) -> None:
    jobs = [stage.submit("scale", rows(number)) for number in range(3)]
    # Until the file has them, which takes a second at most.
    wait_until(lambda: stage.redis.admin.info("persistence")["aof_buffer_length"] == 0, "they have been written")
    stage.redis.restart()
    stage.worker("one")
    assert set(stage.wait_for(*jobs)) == {"succeeded"}
    assert [decoded(stage.results(job)) for job in jobs] == [expected(number) for number in range(3)]


def test_a_job_that_the_queue_has_lost_is_not_kept_waiting_by_others(stage: Stage) -> None:
    """There is always something on the queue, and never this job."""
    lost = stage.submit("scale", rows(0))
    stage.redis.admin.flushall()
    age = time.time() - 3600
    os.utime(stage.owner / lost, (age, age))
    busy: list[str] = []

    def keep_busy() -> None:
        if stage.redis.admin.llen("rq:queue:jobs") < 2:
            busy.append(stage.submit("slow", rows(len(busy), 40)))

    keep_busy()
    keep_busy()
    stage.worker("one", LOOKS_OFTEN)
    assert stage.wait_for(lost, meanwhile=keep_busy) == ["succeeded"]
    assert decoded(stage.results(lost)) == expected(0)


def test_a_job_that_kills_its_workers_is_given_up_and_others_go_on(stage: Stage) -> None:
    workers = [stage.worker(name, LOOKS_OFTEN, DIES_OF_POISON) for name in ("one", "two")]
    deaths = 0

    def start_again() -> None:
        nonlocal deaths
        for worker in workers:
            if not worker.is_alive():
                assert worker.process.returncode == -signal.SIGKILL, worker.log()
                deaths += 1
                worker.start()

    jobs = [stage.submit("slow", rows(0)), stage.submit("poison", rows(1)), stage.submit("slow", rows(2))]
    assert stage.wait_for(*jobs, meanwhile=start_again) == ["succeeded", "failed", "succeeded"]
    poisoned = stage.job(jobs[1])
    assert (poisoned["done"], deaths) == (0, MAX_ATTEMPTS)
    assert poisoned["reason"] == f"given up after {MAX_ATTEMPTS} attempts: the worker died"
    assert [decoded(stage.results(job)) for job in jobs] == [expected(0), [], expected(2)]


def test_whoever_waits_for_an_answer_comes_before_a_job(stage: Stage) -> None:
    worker = stage.worker("one")
    wait_until(lambda: os.sched_getscheduler(worker.process.pid) == os.SCHED_IDLE, "it comes last")


def test_whatever_else_is_on_the_queue_is_refused_and_the_worker_lives_on(stage: Stage, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    pickled = rq.Queue(QUEUE, connection=stage.redis.admin)
    plain = rq.Queue(QUEUE, connection=stage.redis.admin, serializer=JSONSerializer)
    called = rq.Callback("test_jobs_failures_no_such_module.touch")
    injected: list[Callable[[], object]] = [
        lambda: pickled.enqueue("os.mkdir", str(victim)),
        lambda: plain.enqueue("os.mkdir", str(victim)),
        lambda: plain.enqueue("os.system", f"mkdir {victim}", retry=rq.Retry(3)),
        lambda: plain.enqueue("batch_worker.main.main"),
        lambda: plain.enqueue(RUN_JOB, owner_of(None), "none", on_success=called),
        lambda: plain.enqueue(RUN_JOB, owner_of(None), "none", on_failure=called),
        lambda: plain.enqueue(
            RUN_JOB, owner_of(None), "none", webhooks=[rq.Webhook("http://127.0.0.1:1/", "finished")]
        ),
        lambda: plain.enqueue(RUN_JOB, {"a": 1}),
        lambda: plain.enqueue(RUN_JOB, "..", "../../.."),
        lambda: _push(stage, data=b"\x80\x04garbage"),
        lambda: _push(stage, data=b'["a"]'),
        lambda: _push(stage, data=b"[]", status=b"no such status"),
        lambda: _push(stage, data=b'["' + RUN_JOB.encode() + b'", "string", [], {}]', timeout=b"soon"),
        lambda: _push(stage, nothing=b"\xff"),
    ]
    port = free_port()
    worker = stage.worker("one", metrics_bind=f"127.0.0.1:{port}")
    jobs = [stage.submit("slow", rows(0, 40))]
    for inject in injected:
        inject()
        jobs.append(stage.submit("slow", rows(len(jobs), 40)))
    assert set(stage.wait_for(*jobs)) == {"succeeded"}
    assert [decoded(stage.results(job)) for job in jobs] == [expected(number, 40) for number in range(len(jobs))]
    assert worker.is_alive()
    assert not victim.exists()
    # All but those whose arguments alone are foreign, of which there is no such job.
    assert worker.log().count('"a job was refused"') == len(injected) - 2, worker.log()
    assert "no_such_module" not in worker.log()
    figures = exposition(port).splitlines()
    assert f"tiercel_queue_refusals_total {len(injected) - 2}" in figures
    assert f'tiercel_jobs_ended_total{{model="slow",status="succeeded"}} {len(jobs)}' in figures
    assert f'tiercel_job_rows_total{{model="slow",outcome="ok"}} {40 * len(jobs)}' in figures


def exposition(port: int) -> str:
    """What a batch worker shows Prometheus, and nobody anything else."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/")
    refused = connection.getresponse()
    refused.read()
    assert refused.status == 404
    connection.request("GET", "/metrics")
    return connection.getresponse().read().decode()


def _push(stage: Stage, **record: bytes) -> None:
    """A record of RQ's as somebody else writes it."""
    name = f"foreign-{new_id()}"
    stage.redis.admin.hset(f"rq:job:{name}", mapping=record)
    stage.redis.admin.rpush("rq:queue:jobs", name)


def test_results_that_can_not_be_written_are_tried_again_and_then_the_job_fails(stage: Stage) -> None:
    worker = stage.worker("one", LOOKS_OFTEN, TRIES_SOON, WRITES_LITTLE)
    too_many = stage.submit("scale", rows(0, 4000))
    small = stage.submit("scale", rows(1))
    assert stage.wait_for(too_many, small) == ["failed", "succeeded"]
    assert stage.job(too_many)["reason"] == f"given up after {MAX_ATTEMPTS} attempts: [Errno 27] File too large"
    assert decoded(stage.results(small)) == expected(1)
    # What there is of the results is what its `done` says: whole lines, in order.
    done = stage.job(too_many)["done"]
    assert decoded(stage.results(too_many)) == expected(0, 4000)[:done]
    assert worker.is_alive()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of `size` at `folder`, where one may be mounted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("expected to be allowed to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """With all that its disk has room for."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))


def test_jobs_wait_for_a_full_disk(tmp_path: Path) -> None:
    """On which not even a state can be written: no attempt counts until there is room."""
    with small_disk(tmp_path / "jobs", "400k"), ExitStack() as running:
        stage = Stage(tmp_path, running)
        job = stage.submit("slow", rows(0))
        ballast = stage.jobs_dir / "ballast"
        worker = stage.worker("one", LOOKS_OFTEN, TRIES_SOON)
        wait_until(lambda: stage.lines() > 0, "it is being worked on")
        fill(ballast)
        wait_until(lambda: "No space left" in worker.log(), "the worker has noticed")
        ballast.unlink()
        assert stage.wait_for(job) == ["succeeded"]
        assert decoded(stage.results(job)) == expected(0)
        assert worker.is_alive()


def test_housekeeping_goes_on_whatever_a_folder_looks_like(stage: Stage) -> None:
    mine = [stage.owner / new_id() for _ in range(4)]
    others = [stage.jobs_dir / "owners/lost+found" / new_id() for _ in range(4)]
    for folder in [*mine, *others[:3]]:
        folder.mkdir(parents=True)
    running = encode(State(status="running", attempts=1))
    (mine[0] / "state.json").write_bytes(b"")
    (mine[1] / "state.json").write_bytes(b'{"status": 7')
    (mine[2] / "state.json").write_bytes(running)
    (mine[2] / "job.json").write_bytes(b"\xff\x00")
    (others[0] / "state.json").mkdir()
    (others[1] / "state.json").write_bytes(running)
    (others[1] / "lock").mkdir()
    others[3].write_bytes(b"a file")
    (stage.jobs_dir / "owners/a file").write_bytes(b"")
    (stage.jobs_dir / "tmp/a file").write_bytes(b"")

    # One whose worker has died, and one whose time is over.
    died, old = stage.submit("scale", rows(0)), stage.submit("scale", rows(1))
    stage.redis.admin.flushall()
    (stage.owner / died / "state.json").write_bytes(running)
    (stage.owner / old / "state.json").write_bytes(encode(State(status="succeeded", ended=1.0)))
    worker = stage.worker("one", LOOKS_OFTEN, TRIES_SOON)
    assert stage.wait_for(died) == ["succeeded"]
    assert decoded(stage.results(died)) == expected(0)
    wait_until(lambda: not (stage.owner / old).exists(), "what is over has been removed")
    wait_until(lambda: StoredJob(mine[2]).state().status == "failed", "what says nothing of itself fails")
    listed = stage.server.get("/v1/jobs").json()["jobs"]
    assert [job["id"] for job in listed] == [died]
    assert worker.is_alive()
