"""Wires a process: settings in, everything that a prediction needs out. Tests pass their own parts."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from inference_core.batching import Turns
from inference_core.cache import PredictionCache
from inference_core.errors import PackageRefused
from inference_core.jobs import JobStore
from inference_core.model import load_model
from inference_core.predictor import Predictor
from inference_core.quotas import Quotas
from inference_core.repository import Repository
from inference_core.rollout import Rollout, propose
from inference_core.settings import Settings, read_secret
from inference_core.shared_state import Desired, SharedState
from inference_core.store import open_store
from inference_core.thread_plan import granted_cpus, make_plan
from inference_core.watchdog import Watchdog

if TYPE_CHECKING:
    from inference_core.job_queue import JobQueue

# A job is kept before the queue is told, and does not depend on it.
QUEUE_TIMEOUT_SECONDS = 1.0


class Services(msgspec.Struct, frozen=True):
    settings: Settings
    repository: Repository
    rollout: Rollout
    predictor: Predictor
    watchdog: Watchdog
    quotas: Quotas
    # None where jobs are not taken.
    jobs: "Jobs | None" = None


class Jobs(NamedTuple):
    store: JobStore
    queue: "JobQueue"


def bootstrap(settings: Settings) -> Services:
    """Load and warm what is to be served, and start the threads of this process. Call it after the fork."""
    repository = _repository(settings)
    state = SharedState(Path(settings.state_dir))
    rollout = Rollout(repository, state, settings.max_model_bytes, settings.load_timeout_seconds, settings.poll_seconds)
    watchdog = Watchdog(settings.hang_grace_ms / 1000)
    store = open_store(settings.cache_url, read_secret(settings.cache_password_file), settings.redis_timeout_ms / 1000)
    cache = PredictionCache(
        store, settings.cache_ttl_seconds, settings.cache_max_entry_bytes, settings.cache_local_bytes
    )
    quotas = Quotas(store, workers=lambda: len(state.progress()))
    rollout.start()
    watchdog.start()
    predictor = Predictor(cache, Turns() if settings.worker_class == "gthread" else None)
    return Services(settings, repository, rollout, predictor, watchdog, quotas, _jobs(settings))


def _jobs(settings: Settings) -> Jobs | None:
    if not settings.jobs_dir or not settings.queue_url:
        return None
    # PERF: RQ takes a third of a server's start, and is not needed without jobs.
    from inference_core.job_queue import open_queue  # noqa: PLC0415

    queue = open_queue(settings.queue_url, read_secret(settings.queue_password_file), QUEUE_TIMEOUT_SECONDS)
    return Jobs(JobStore(Path(settings.jobs_dir), settings.max_jobs, settings.max_jobs_bytes), queue)


def prepare(settings: Settings) -> None:
    """Decide what is to be served, once, before there are workers that must agree on it."""
    if settings.strict_keys_file:
        _check_keys(settings.strict_keys_file)
    state = SharedState(Path(settings.state_dir))
    proposed = propose(_repository(settings), settings.max_model_bytes)
    with state.exclusive(settings.load_timeout_seconds):
        _decide(state, proposed)


def _check_keys(path: str) -> None:
    from inference_core.signatures import read_keys  # noqa: PLC0415  # PERF: as in manifest.py

    try:
        read_keys(path)
    except PackageRefused as error:
        raise PackageRefused(f"TIERCEL_STRICT_KEYS_FILE: {error}") from None


def _decide(state: SharedState, proposed: Desired) -> None:
    decided = state.read()
    if not decided.generation:
        state.write(proposed)
    elif proposed.models.keys() - decided.models.keys():
        state.write(
            msgspec.structs.replace(
                decided,
                generation=decided.generation + 1,
                models=proposed.models | decided.models,
                proposed=proposed.proposed | decided.proposed,
            )
        )


def _repository(settings: Settings) -> Repository:
    plan = make_plan(settings, granted_cpus())
    load = functools.partial(load_model, intra_op_threads=plan.intra_op_threads, spinning=plan.spinning)
    folder, keys = Path(settings.models_dir), settings.strict_keys_file
    return Repository(folder, load, settings.max_model_bytes, keys, batches=settings.worker_class == "gthread")
