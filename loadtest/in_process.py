"""The in-process limit: decode, run and best labels in a loop, in as many processes as CPUs, without HTTP.

Of an open loop the limit is computed: latencies if requests took as long as here, and waited in one queue.

As a program, one such process: it reads a number of seconds per line, and answers with what it did in them.
"""

import heapq
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any, cast

from generator import poisson
from outcomes import Outcome
from processes import clean_environ
from samples import Sample, take_sample
from scenarios import Scenario, classify, is_labels, open_model, photos

from inference_core.model import Model


class InProcess:
    """The same processes for the whole run: between two measurements they wait for a line."""

    name = "in-process"
    scenarios = ("image", "image-open")

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

    def measure(self, scenario: Scenario, seconds: float, seed: int) -> Sample:
        warm_up = self._run(scenario.warm_up_seconds)
        pids = [process.pid for process in self._processes]

        def run() -> Outcome:
            outcome = self._run(seconds).with_errors_of(warm_up)
            if rate := scenario.rate_of(warm_up.rate):
                outcome.latencies = in_one_queue(outcome.latencies, self._cpus, poisson(seconds, rate, seed))
            return outcome

        return take_sample(pids, pids, run)

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


def in_one_queue(services: Sequence[float], workers: int, arrivals: Iterator[float]) -> list[float]:
    """Latencies if whoever is free took what has waited for the longest, and nothing but `services` cost time."""
    free = [0.0] * workers  # when each of them is
    latencies = []
    for due, service in zip(arrivals, itertools.cycle(services)):
        done = max(due, heapq.heappop(free)) + service
        heapq.heappush(free, done)
        latencies.append(done - due)
    return latencies


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
