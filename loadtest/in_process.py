"""The in-process limit: decode, run and best labels in a loop, in as many processes as CPUs, without HTTP.

As a program, one such process: it reads a number of seconds per line, and answers with what it did in them.
"""

import itertools
import json
import subprocess
import sys
import time
from typing import IO, Any, cast

from generator import Outcome
from processes import clean_environ
from samples import Sample, take_sample
from scenarios import Scenario, classify, is_labels, open_model, photos

from inference_core.model import Model


class InProcess:
    """The same processes for the whole run: between two measurements they wait for a line."""

    name = "in-process"
    scenarios = ("image",)

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._processes: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        command = [sys.executable, __file__]
        self._processes = [
            subprocess.Popen(command, env=clean_environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(self._cpus)
        ]

    def stop(self) -> None:
        for process in self._processes:
            process.communicate()  # the end of its input ends it
        self._processes = []

    def measure(self, scenario: Scenario, warm_up_seconds: float, seconds: float) -> Sample:
        warm_up = self._run(warm_up_seconds)
        pids = [process.pid for process in self._processes]
        return take_sample(pids, pids, lambda: self._run(seconds).with_errors_of(warm_up))

    def _run(self, seconds: float) -> Outcome:
        for process in self._processes:
            print(seconds, file=process.stdin, flush=True)
        outcome = Outcome(seconds)
        for process in self._processes:
            answer = json.loads(cast("IO[str]", process.stdout).readline())
            outcome.latencies += answer["latencies"]
            outcome.completed += answer["completed"]
            if answer["wrong"]:
                outcome.error("expected another prediction, in process", answer["wrong"])
        return outcome


def main() -> None:
    model, examples = open_model("efficientnet-lite0"), photos()
    for line in sys.stdin:
        print(json.dumps(work(model, examples, float(line))), flush=True)


def work(model: Model, examples: list[tuple[bytes, list[dict[str, Any]]]], seconds: float) -> dict[str, Any]:
    """Classify the `examples` in turn for `seconds`."""
    latencies: list[float] = []
    wrong = completed = 0
    now = time.perf_counter()
    deadline = now + seconds
    for photo, expected in itertools.cycle(examples):
        labels = classify(model, photo)
        started, now = now, time.perf_counter()
        completed += 1
        wrong += not is_labels(expected, {"predictions": labels})
        if now >= deadline:
            break
        latencies.append(now - started)
    return {"latencies": latencies, "completed": completed, "wrong": wrong}


if __name__ == "__main__":
    main()
