"""Batch jobs for tests: rows and ZIP files, a runner in this process, and a real batch worker in one of its own."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest
from PIL import Image
from servers import wait_until

from batch_worker.models import Models
from batch_worker.runner import Runner
from inference_core.jobs import Job, JobStore, StoredJob, new_id
from inference_core.model import load_model
from inference_core.repository import Repository
from inference_core.settings import Settings
from inference_core.watchdog import Watchdog

ENDED = ("succeeded", "failed", "cancelled")
MAX_BYTES = 1 << 30
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def photo(colour: tuple[int, int, int] = RED, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, kind)
    return file.getvalue()


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A ZIP file of `files`; names that end with a slash are folders."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return memory.getvalue()


def lines(values: Any) -> list[bytes]:
    return [json.dumps(value).encode() + b"\n" for value in values]


def read_lines(body: bytes) -> list[Any]:
    """The values of JSON Lines, each of whose lines is whole."""
    assert body == b"" or body.endswith(b"\n")
    return [json.loads(line) for line in body.splitlines()]


def make_store(root: Path, max_unfinished: int = 100, max_bytes: int = MAX_BYTES) -> JobStore:
    return JobStore(root, max_unfinished, max_bytes)


def make_job(**values: Any) -> Job:
    """One of a model "m" for two rows, but for `values`."""
    usual: dict[str, Any] = {
        "id": new_id(),
        "owner": "anna",
        "model": "m",
        "version": "1",
        "digest": "d",
        "kind": "instances",
        "rows": 2,
        "bytes": 4,
        "created": time.time(),
        "request_id": "request",
    }
    return Job(**usual | values)


def submit(store: JobStore, rows: list[bytes] | None = None, /, **values: Any) -> StoredJob:
    """A new job in `store`, of these rows."""
    rows = [b"1\n", b"2\n"] if rows is None else rows
    job = make_job(**{"rows": len(rows), "bytes": sum(map(len, rows))} | values)
    stored, is_new = store.submit(job, rows, None, "request")
    assert is_new
    return stored


class Clock:
    """What the module `time` is to `modules`: it stands still unless a test moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        self.now = time.time()
        for module in modules:
            monkeypatch.setattr(module, "time", self)

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return round(self.now * 1000) * 1_000_000


class Queue:
    """A queue that remembers what was put on it, as long as it is there."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, str]] = []
        self.away = False

    def enqueue(self, owner: str, job_id: str) -> bool:
        if not self.away:
            self.jobs.append((owner, job_id))
        return not self.away

    def waiting(self) -> set[str] | None:
        return None if self.away else {job_id for _, job_id in self.jobs}

    def run_all(self, runner: Runner) -> None:
        while self.jobs:
            runner.run(*self.jobs.pop(0))


def make_runner(
    store: JobStore,
    models: Path,
    is_stopping: Callable[[], bool] = lambda: False,
    beat: Callable[[], None] = lambda: None,
    **settings: Any,
) -> Runner:
    """The real one, with the models that lie in a folder; its watchdog ends nothing."""
    load: Any = partial(load_model, intra_op_threads=1)
    return Runner(
        store,
        Models(Repository(models, load, MAX_BYTES), load, MAX_BYTES),
        Watchdog(1.0, end_process=lambda status: None),
        Settings(**settings),
        is_stopping,
        beat,
    )


class Worker:
    """`with Worker(url, jobs, models) as worker:` a real batch worker, which takes jobs inside."""

    def __init__(self, queue_url: str, jobs: Path, models: Path, **settings: Any) -> None:
        variables = {"queue_url": queue_url, "jobs_dir": jobs, "models_dir": models} | settings
        self._environment = {f"TIERCEL_{name.upper()}": str(value) for name, value in variables.items()}
        self._log = jobs.parent / f"worker-{time.time_ns()}.log"

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "batch_worker.main"]
            self.process = subprocess.Popen(command, env=os.environ | self._environment, stdout=log, stderr=log)
        wait_until(self._listens, f"the batch worker listens; its log: {self._log}")
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """With SIGTERM; how it ended."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def log(self) -> str:
        return self._log.read_text()

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log()
        return "Listening on" in self.log()
