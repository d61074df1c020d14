"""Batch jobs on the Compose stack, through NGINX."""

import json
import os
import subprocess
from typing import Any

from compose import ROOT, Stack
from servers import wait_until

LINES = {"Content-Type": "application/x-ndjson"}
ROWS = json.loads((ROOT / "models/breast-cancer/examples/instances.json").read_bytes())["instances"]
PHOTOS = ROOT / "models/efficientnet-lite0/examples"


def submit(stack: Stack, rows: list[Any]) -> str:
    body = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    answer = stack.request("POST", "/v1/jobs?model=breast-cancer", body, LINES)
    assert answer.status == 202, answer
    return str(answer.json()["id"])


def ended(stack: Stack, job: str) -> dict[str, Any]:
    """Its description once it has ended."""
    described: dict[str, Any] = {}

    def has_ended() -> bool:
        described.update(stack.request("GET", f"/v1/jobs/{job}").json())
        return described["status"] in ("succeeded", "failed", "cancelled")

    wait_until(has_ended, "the job ends", 120)
    return described


def results(stack: Stack, job: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stack.request("GET", f"/v1/jobs/{job}/results").body.splitlines()]


def test_the_results_of_a_job_are_those_of_predict(stack: Stack) -> None:
    """And of its maker alone."""
    job = submit(stack, [*ROWS, [1.0]])
    described = ended(stack, job)
    assert (described["status"], described["done"], described["errors"]) == ("succeeded", len(ROWS) + 1, 1)
    body = json.dumps({"instances": ROWS}).encode()
    predictions = stack.request("POST", "/v1/models/breast-cancer:predict", body).json()["predictions"]
    *good, bad = results(stack, job)
    assert [line["prediction"] for line in good] == predictions
    assert "expected shape" in bad["error"]
    assert stack.request("GET", f"/v1/jobs/{job}", token="").status == 401
    operator = stack.compose("exec", "-T", "api", "tiercel", "token", "jobs").strip()
    assert stack.request("GET", f"/v1/jobs/{job}", token=operator).status == 404


def test_a_job_is_larger_than_a_prediction_may_be(stack: Stack) -> None:
    rows = [ROWS[i % len(ROWS)] for i in range(30_000)]
    job = submit(stack, rows)
    assert (ended(stack, job)["status"], len(results(stack, job))) == ("succeeded", len(rows))


def test_jobs_end_whoever_is_killed(stack: Stack) -> None:
    """One of two workers, and the queue: nothing is lost, and nothing comes twice."""
    stack.up("--scale", "worker=2", "--no-recreate", "worker")
    jobs = [submit(stack, ROWS * 3000) for _ in range(6)]
    for container in (min(stack.ids("worker")), *stack.ids("redis-queue")):
        stack.kill_init(container)
    for job in jobs:
        described = ended(stack, job)
        assert (described["status"], described["errors"]) == ("succeeded", 0), described
        assert [line["index"] for line in results(stack, job)] == list(range(len(ROWS) * 3000))
    stack.wait_healthy("redis-queue")
    stack.up("--scale", "worker=1", "--no-recreate", "worker")


def test_the_command_line_hands_over_a_folder_of_photos(stack: Stack) -> None:
    output = stack.ca.with_name("photos.results.jsonl")
    command = [".venv/bin/tiercel", "jobs", "--url", f"https://localhost:{stack.port}", "--ca", str(stack.ca)]
    command += ["submit", str(PHOTOS), "--model", "efficientnet-lite0", "--output", str(output)]
    environ = os.environ | {"TIERCEL_TOKEN": stack.token}
    said = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout
    assert said.startswith("succeeded: ")
    labels = {line["name"]: line["prediction"][0]["label"] for line in map(json.loads, output.read_text().splitlines())}
    assert labels["chelsea.jpg"] == "tiger cat"
    assert len(labels) == len(list(PHOTOS.glob("*.jpg")))
