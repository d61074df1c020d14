"""What is searched: ways to share the CPUs out, in the words of the server's settings."""

import math
from collections.abc import Sequence

import msgspec

from inference_core.settings import WorkerClass, variable


class Configuration(msgspec.Struct, frozen=True):
    worker_class: WorkerClass
    workers: int
    intra_op_threads: int
    spinning: bool

    def __str__(self) -> str:
        words = f"{self.worker_class}, {self.workers} x {self.intra_op_threads} threads"
        return f"{words}, spinning" if self.spinning else words

    def variables(self) -> dict[str, str]:
        return {variable(name): str(value).lower() for name, value in msgspec.structs.asdict(self).items()}

    def distance(self, other: "Configuration") -> float:
        """How many changes they are apart: twice the workers with half the threads each are one."""
        workers = abs(math.log2(self.workers / other.workers))
        threads = abs(math.log2(self.intra_op_threads / other.intra_op_threads))
        switches = (self.spinning != other.spinning) + (self.worker_class != other.worker_class)
        return max(workers, threads) + switches


def grid(cpus: int, worker_classes: Sequence[WorkerClass]) -> list[Configuration]:
    """All that do not oversubscribe the CPUs; the first is the server's own plan, the last the opposite of it.

    Without a second thread there is nobody to spin.
    """
    counts = _counts(cpus)
    return [
        Configuration(worker_class, workers, threads, spinning)
        for worker_class in worker_classes
        for threads in counts
        for workers in reversed(counts)
        if workers * threads <= cpus
        for spinning in ((False, True) if threads > 1 else (False,))
    ]


def _counts(cpus: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12 ... and all CPUs: steps beyond which a count hardly makes a difference."""
    steps = {step << power for power in range(cpus.bit_length()) for step in (1, 3)}
    return sorted({step for step in steps if step < cpus} | {cpus})
