"""Works on a job: rows in batches through the model, a line of results for each, and on from there after a crash.

A job is worked on under its lock, so that two workers never write to the same results; whoever has it next cuts off
what the last one left half written, and goes on with the row after. So every row has one line, however often a worker
dies.
"""

import errno
import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import structlog

from batch_worker.models import Models
from batch_worker.rows import Row, read_rows
from inference_core.errors import DeadlineExceeded, InferenceFailed, InvalidInput, NotFound, TiercelError
from inference_core.images import decode_image
from inference_core.instances import best_labels, decode_instances, to_predictions
from inference_core.jobs import ENDED, Job, JobStore, State, Status, StoredJob
from inference_core.model import Model
from inference_core.settings import Settings
from inference_core.watchdog import InFlight, Watchdog
from observability.families import JOB_FAULTS, JOB_ROWS, JOB_SECONDS, JOBS_ENDED
from observability.tracing import NO_TRACES, Span, Tracer, read_trace

# A batch is to last about so long: short enough to end soon when somebody cancels or the worker is to stop.
BATCH_SECONDS = 0.1
# What a batch may take at most; a row that takes longer alone is an error, and what does not end ends the worker. Much
# more than it should, as others come first: beside an API that is never idle, it may get a hundredth of a CPU.
MAX_BATCH_SECONDS = 600.0
SAVE_SECONDS = 0.5
# Of faults that are not the job's own, such as a full disk or the worker's death; then it is parked as failed.
MAX_ATTEMPTS = 4
BACKOFF_SECONDS = (1.0, 5.0, 30.0)

log = structlog.get_logger("tiercel.job")


class Stopped(Exception):
    """The worker is to end, or somebody wants the job to."""


class Result(msgspec.Struct, omit_defaults=True):
    """A line of the results; `error` instead of `prediction` says what was wrong with the row."""

    index: int
    name: str | None = None
    prediction: Any = msgspec.UNSET
    error: str | None = None


class Runner:
    """`is_stopping` says whether the worker is to end; `beat` is called often, as a sign of life."""

    def __init__(
        self,
        store: JobStore,
        models: Models,
        watchdog: Watchdog,
        settings: Settings,
        is_stopping: Callable[[], bool],
        beat: Callable[[], None],
        tracer: Tracer = NO_TRACES,
    ) -> None:
        self._store = store
        self._models = models
        self._watchdog = watchdog
        self._max_image_pixels = settings.max_image_pixels
        self._max_json_depth = settings.max_json_depth
        self._is_stopping = is_stopping
        self._beat = beat
        self._tracer = tracer

    def run(self, owner: str, job_id: str) -> None:
        """Bring the job to its end; nothing if it has ended, is not due yet, or another works on it."""
        try:
            stored = self._store.get(owner, job_id)
        except TiercelError:  # it has been removed
            return
        with stored.locked() as is_ours:
            state = stored.state()
            if not is_ours or state.status in ENDED or time.time() < state.not_before:
                return
            if stored.is_cancelled():
                _end(stored, state, "cancelled")
            elif state.attempts >= MAX_ATTEMPTS:
                reason = state.reason or "the worker died"
                _end(stored, state, "failed", f"given up after {state.attempts} attempts: {reason}")
            else:
                self._attempt(stored, state)

    def _attempt(self, stored: StoredJob, before: State) -> None:
        now = time.time()
        # Written first: an attempt that kills the worker counts as well.
        state = msgspec.structs.replace(
            before, status="running", attempts=before.attempts + 1, started=before.started or now, updated=now
        )
        stored.write_state(state)
        progress, began = _Progress(stored, state), time.time_ns()
        try:
            self._work(stored, stored.job(), progress)
        except Stopped:
            if stored.is_cancelled():
                _end(stored, progress.state, "cancelled")
            else:
                stored.write_state(_queued(progress.state, attempts=before.attempts, not_before=time.time()))
        except TiercelError as error:
            _end(stored, progress.state, "failed", str(error))
        except Exception as error:
            log.exception("an attempt at a job failed", job=stored.folder.name, attempt=state.attempts)
            JOB_FAULTS.of().add()
            if state.attempts >= MAX_ATTEMPTS:
                _end(stored, progress.state, "failed", f"given up after {state.attempts} attempts: {error}")
            else:
                wait = BACKOFF_SECONDS[min(state.attempts, len(BACKOFF_SECONDS)) - 1]
                stored.write_state(_queued(progress.state, not_before=time.time() + wait, reason=str(error)))
        else:
            _end(stored, progress.state, "succeeded")
        finally:
            self._trace(stored, began)

    def _trace(self, stored: StoredJob, began: int) -> None:
        """An attempt, in the trace of the request that the job was handed over with."""
        with suppress(NotFound):  # it has been removed meanwhile
            job, state = stored.job(), stored.state()
            if not (trace := read_trace(job.traceparent)):
                return
            attributes = {
                "tiercel.job": job.id,
                "tiercel.request_id": job.request_id,
                "tiercel.model": job.model,
                "tiercel.version": job.version,
                "tiercel.rows": state.done,
                "tiercel.attempt": state.attempts,
                "tiercel.status": state.status,
            }
            span = Span("run job", began, time.time_ns(), attributes, "CONSUMER", state.reason)
            self._tracer.record(trace, span, link=trace.parent)

    def _work(self, stored: StoredJob, job: Job, progress: "_Progress") -> None:
        model = self._models.get(job)
        with stored.results.open("ab") as results, read_rows(stored.input, job.kind, self._max_json_depth) as rows:
            done, errors = stored.resume()
            progress.set(done, errors)
            for batch in _batches(rows(done), model):
                lines = self._predicted(model, job, batch, functools.partial(self._pause, stored))
                results.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
                results.flush()
                errors = sum(line.error is not None for line in lines)
                progress.add(len(lines), errors)
                JOB_ROWS.of(job.model, "ok").add(len(lines) - errors)
                JOB_ROWS.of(job.model, "error").add(errors)
                if self._store.is_full():
                    raise OSError(errno.ENOSPC, "there is no room for more results")
            os.fsync(results.fileno())

    def _pause(self, stored: StoredJob) -> None:
        """Stopped if that is what somebody wants; else a sign of life."""
        if self._is_stopping() or stored.is_cancelled():
            raise Stopped
        self._beat()

    def _predicted(self, model: Model, job: Job, batch: list[Row], pause: Callable[[], None]) -> list[Result]:
        """A result for each row. If one spoils the batch the halves are tried, down to the row that does."""
        pause()
        try:
            with self._watchdog.watch(time.monotonic() + MAX_BATCH_SECONDS, lambda hung: None) as call:
                predictions = self._predict(model, job, batch, call)
            if len(predictions) != len(batch):
                name = model.manifest.name
                raise InferenceFailed(f"model {name}: expected {len(batch)} rows, got {len(predictions)}")
        except (InvalidInput, InferenceFailed, DeadlineExceeded) as error:
            if len(batch) > 1:
                halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
                return [line for half in halves for line in self._predicted(model, job, half, pause)]
            return [Result(batch[0].index, batch[0].name, error=_told(error, job, batch[0]))]
        return [Result(row.index, row.name, prediction) for row, prediction in zip(batch, predictions, strict=True)]

    def _predict(self, model: Model, job: Job, batch: list[Row], call: InFlight) -> list[Any]:
        manifest = model.manifest
        if job.kind == "photos" and manifest.image:
            arrays = [decode_image(row.data(), manifest.image, self._max_image_pixels) for row in batch]
            [scores] = model.run({manifest.image.input: np.concatenate(arrays)}, [manifest.image.output], call.options)
            return [best_labels(row, manifest.labels, job.top_k) for row in scores]
        body = b'{"instances":[' + b",".join(row.data() for row in batch) + b"]}"
        feeds, photos = decode_instances(body, manifest, self._max_image_pixels, call.check)
        if photos and manifest.image:
            [scores] = model.run(feeds, [manifest.image.output], call.options)
            return [best_labels(row, manifest.labels, job.top_k) for row in scores]
        return to_predictions(manifest.outputs, model.run(feeds, None, call.options))


class _Progress:
    """How far an attempt is, written down once in a while."""

    def __init__(self, stored: StoredJob, state: State) -> None:
        self._stored = stored
        self._saved = time.monotonic()
        self.state = state

    def set(self, done: int, errors: int) -> None:
        self.state = msgspec.structs.replace(self.state, done=done, errors=errors)

    def add(self, done: int, errors: int) -> None:
        state = self.state
        self.state = msgspec.structs.replace(
            state, done=state.done + done, errors=state.errors + errors, updated=time.time()
        )
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._saved = time.monotonic()
            self._stored.write_state(self.state)


def _batches(rows: Iterator[Row], model: Model) -> Iterator[list[Row]]:
    size = min(model.manifest.max_batch_size, max(1, int(BATCH_SECONDS / max(model.seconds, 1e-6))))
    while batch := list(islice(rows, size)):
        yield batch


def _told(error: TiercelError, job: Job, row: Row) -> str:
    """What is wrong with a row. What the runtime says of itself is for us to read."""
    if not isinstance(error, InferenceFailed):
        return str(error)
    log.error("inference failed", job=job.id, row=row.index, reason=str(error))
    return f"the inference failed, as logged under job {job.id}"


def _queued(state: State, **changes: Any) -> State:
    return msgspec.structs.replace(state, status="queued", **changes)


def _end(stored: StoredJob, state: State, status: Status, reason: str = "") -> None:
    """One line for each job, as for each request (see inference_api.observation)."""
    ended = stored.end(state, status, reason)
    try:
        job = stored.job()
    except NotFound as error:
        log.error("a job's end cannot be counted", job=stored.folder.name, reason=str(error))
        return
    seconds = (ended.ended or time.time()) - job.created
    JOBS_ENDED.of(job.model, status).add()
    JOB_SECONDS.of(job.model).observe(seconds)
    trace = read_trace(job.traceparent)
    log.info(
        "job ended",
        job=job.id,
        request_id=job.request_id,
        trace_id=trace.id if trace else None,
        model=job.model,
        version=job.version,
        status=status,
        rows=job.rows,
        done=ended.done,
        errors=ended.errors,
        attempts=ended.attempts,
        seconds=round(seconds, 3),
        reason=reason,
    )
