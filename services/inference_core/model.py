"""A model that answers: a verified package, loaded by its runtime."""

import ctypes
import time

import numpy as np

from inference_core.errors import DeadlineExceeded, InferenceFailed, InvalidInput, PackageRefused
from inference_core.manifest import Package, TensorSpec
from inference_core.policy import Policy
from inference_core.runtimes import load_engine
from inference_core.runtimes.engine import Stop, fits, in_short
from inference_core.runtimes.onnx import RunOptions
from inference_core.tensors import DATATYPES, Tensor

__all__ = ["Model", "RunOptions", "example", "load_model"]
WARM_UP_RUNS = 2


class Model:
    """One loaded version of a model.

    NOTE: created in the process that runs it: a session is not promised to survive a fork (onnxruntime #9800).
    """

    def __init__(self, package: Package, intra_op_threads: int, spinning: bool = False) -> None:
        self.manifest = package.manifest
        self.digest = package.digest
        self.policy = Policy()
        # Whether it saves time to run predictions as one, as measured when its policy wanted to know.
        self.gains = False
        # What a prediction costs, on average: the warm-up's at first, then that of requests, photos decoded.
        self.seconds = 0.0
        self.load_seconds = 0.0
        engine = load_engine(package, intra_op_threads, spinning)
        # What its answers follow from besides its input.
        self.fingerprint = f"{package.digest} {engine.version}"
        self._run = engine.run
        self._refusals = engine.refusals
        self._output_names = [spec.name for spec in self.manifest.outputs]

    def run(self, feeds: dict[str, Tensor], outputs: list[str] | None, options: Stop) -> list[Tensor]:
        """The arrays of the wanted `outputs` (None: all, in the manifest's order) for one array per input."""
        try:
            return self._run(outputs or self._output_names, feeds, options)
        except self._refusals as error:  # well-formed, but for instance an index beyond the end of a table
            raise InvalidInput(f"model {self.manifest.name}: refuses these values: {in_short(error)}") from None
        except Exception as error:
            if options.terminate:
                raise DeadlineExceeded(f"model {self.manifest.name}: stopped at the deadline") from None
            raise InferenceFailed(f"model {self.manifest.name}: {in_short(error)}") from error

    def warm_up(self) -> None:
        """Run on inputs of the real shapes, so that the first request finds memory and kernels prepared."""
        feeds = {spec.name: example(spec) for spec in self.manifest.inputs}
        try:
            for _ in range(WARM_UP_RUNS):
                began = time.perf_counter()
                arrays = self.run(feeds, None, RunOptions())
                self.seconds = time.perf_counter() - began
        except (InferenceFailed, InvalidInput) as error:
            raise PackageRefused(f"{self.manifest.model_file}: fails on a warm-up input of zeros: {error}") from None
        for spec, array in zip(self.manifest.outputs, arrays, strict=True):
            # One row went in, so one comes out.
            shape = (1, *spec.shape[1:]) if self.manifest.max_batch_size else spec.shape
            if not fits(shape, array.shape):
                raise PackageRefused(f"output '{spec.name}': expected shape {list(shape)}, got {list(array.shape)}")
            if array.dtype != DATATYPES[spec.datatype].dtype:
                raise PackageRefused(f"output '{spec.name}': expected {spec.datatype}, got {array.dtype}")


def load_model(package: Package, intra_op_threads: int, spinning: bool = False) -> Model:
    """A model of `package`, loaded and warm; PackageRefused with the reason if it cannot be."""
    began = time.perf_counter()
    model = Model(package, intra_op_threads, spinning)
    model.warm_up()
    model.load_seconds = time.perf_counter() - began
    _return_free_memory()
    return model


def _return_free_memory() -> None:
    """PERF: loading leaves holes in the heap, 6 of 29 MB with the image model, which glibc keeps unless asked."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def example(spec: TensorSpec) -> Tensor:
    """One row of zeros, or of empty texts."""
    shape = [1 if size == -1 else size for size in spec.shape]
    if spec.datatype == "BYTES":
        return np.full(shape, "", object)
    return np.zeros(shape, DATATYPES[spec.datatype].dtype)
