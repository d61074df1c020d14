"""What a job on the queue may call."""

from batch_worker.runner import Runner

# RQ calls functions of a module, by their names: main.py sets this before the first job comes.
runner: Runner | None = None


def run_job(owner: str, job_id: str) -> None:
    if runner is None:
        raise RuntimeError("batch_worker.tasks.runner: expected main.py to have set it")
    runner.run(owner, job_id)
