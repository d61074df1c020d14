"""The meinheld worker class as far as it needs no requests; the rest is in the contracts."""

import signal

import pytest

# It does not import on CPython 3.13 and later.
pytest.importorskip("meinheld", exc_type=ImportError)


def test_a_worker_that_is_told_to_end_before_it_runs_ends() -> None:
    """As by SIGHUP just after it was started in another's place. A failure there would end the whole server."""
    from inference_api.workers.meinheld import MeinheldWorker  # noqa: PLC0415  # where there is one

    worker = MeinheldWorker.__new__(MeinheldWorker)
    worker._drain_until = None
    worker.handle_exit(signal.SIGTERM, None)
    assert not worker.alive
