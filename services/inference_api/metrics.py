"""`/metrics` for Prometheus, and Triton's statistics extension: what all workers of this server have counted."""

import platform
import time
from importlib.metadata import version
from pathlib import Path

import falcon
import msgspec

from inference_api.openapi import Operation
from inference_api.v2 import MODEL_ERRORS, Resource, send
from inference_core.errors import NotFound
from inference_core.model import Model
from inference_core.settings import Settings
from inference_core.thread_plan import granted_cpus, make_plan
from observability import families
from observability.exposition import (
    MEDIA_TYPE,
    Numbers,
    by_label,
    collect,
    put,
    render,
    resident_bytes,
    totals,
)
from observability.metrics import Family, Histogram


class Duration(msgspec.Struct):
    """`ns`: nanoseconds of all of them together."""

    count: int
    ns: int


class InferenceStatistics(msgspec.Struct):
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(msgspec.Struct):
    name: str
    version: str
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    batch_stats: list[None] = []


class Statistics(msgspec.Struct):
    model_stats: list[ModelStatistics]


class MetricsResource(Resource):
    """What this server has counted and measured, as Prometheus reads it."""

    operation = Operation(response=None, media=MEDIA_TYPE, errors=(404,))

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        # SECURITY: NGINX answers for itself; this is for who forgets it in an NGINX of their own.
        if "HTTP_X_FORWARDED_FOR" in req.env:
            raise NotFound("no such route: /metrics is not for clients")
        began = time.perf_counter()
        folder = self._services.settings.metrics_dir
        numbers, pids = collect(Path(folder) if folder else None)
        put(numbers, families.READY, float(not self._services.rollout.unready()))
        put(numbers, families.WORKERS, len(pids))
        for worker, pid in enumerate(sorted(pids)):
            put(numbers, families.WORKER_BYTES, resident_bytes(pid), str(worker))
        for model in self._services.repository.loaded():
            manifest = model.manifest
            put(numbers, families.MODEL_INFO, 1, manifest.name, manifest.version, model.digest)
            put(numbers, families.LOAD_SECONDS, model.load_seconds, manifest.name, manifest.version)
        put(numbers, families.SCRAPE_SECONDS, time.perf_counter() - began)
        resp.data, resp.content_type = render(numbers).encode(), MEDIA_TYPE

    on_head = on_get


class StatisticsResource(Resource):
    """How often a model was asked, and what that took, since the server has started."""

    operation = Operation(response=Statistics, errors=MODEL_ERRORS)

    def on_get(
        self, req: falcon.Request, resp: falcon.Response, model: str | None = None, version: str | None = None
    ) -> None:
        folder, repository = self._services.settings.metrics_dir, self._services.repository
        req.context.observer.try_to_flush()  # so that who asks twice, of the same worker, hears the same
        numbers = collect(Path(folder) if folder else None).numbers
        models = [repository.get(model, version)] if model else repository.loaded()
        send(resp, Statistics([_statistics(each, numbers) for each in models]))

    on_head = on_get


def tell_what_runs(settings: Settings) -> None:
    """The figures that do not change as long as this process lives."""
    plan = make_plan(settings, granted_cpus())
    families.begin_at_zero()
    families.WORKER_STARTS.of().add()
    families.WORKERS_PLANNED.of().set(plan.workers)
    families.INFERENCE_THREADS.of().set(plan.intra_op_threads)
    what = (version("tiercel"), platform.python_version(), version("onnxruntime"), settings.worker_class)
    families.BUILD_INFO.of(*what).set(1)


def _statistics(model: Model, numbers: Numbers) -> ModelStatistics:
    name, number = model.manifest.name, model.manifest.version
    labels = {"model": name, "version": number}

    def duration(family: Family[Histogram]) -> Duration:
        *counts, seconds = totals(numbers, family, **labels)
        return Duration(int(sum(counts)), int(seconds * 1e9))

    good = bad = 0
    for status, count in by_label(numbers, families.REQUESTS, "status", **labels).items():
        good += int(count) * status.startswith("2")
        bad += int(count) * (not status.startswith("2"))
    stages = [duration(family) for family in (families.INPUT_SECONDS, families.INFER_SECONDS, families.OUTPUT_SECONDS)]
    took = sum(stage.ns for stage in stages) + duration(families.CACHE_SECONDS).ns
    [rows] = totals(numbers, families.ROWS, **labels)
    # Requests wait before it is known which model they are for.
    times = InferenceStatistics(Duration(good, took), Duration(bad, 0), Duration(good, 0), *stages)
    return ModelStatistics(name, number, int(rows), stages[1].count, times)
