"""A model that answers: a verified package in a session of ONNX Runtime, which only this module imports."""

import ctypes
import os
import time
from pathlib import Path

# ONNX Runtime 1.29 and later report usage on Linux unless told not to, from the moment of import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from inference_core.errors import DeadlineExceeded, InferenceFailed, InvalidInput, PackageRefused
from inference_core.manifest import Package, TensorSpec
from inference_core.policy import Policy
from inference_core.tensors import DATATYPES, Tensor

WARM_UP_RUNS = 2
CPU_INFO = Path("/proc/cpuinfo")
# Made per run: setting its `terminate` from another thread ends the run at the next node of the graph.
RunOptions = ort.RunOptions


class Model:
    """One loaded version of a model.

    NOTE: created in the process that runs it: a session is not promised to survive a fork (onnxruntime #9800).
    """

    def __init__(self, package: Package, intra_op_threads: int) -> None:
        self.manifest = package.manifest
        self.digest = package.digest
        # What its answers follow from besides its input.
        self.fingerprint = f"{package.digest} onnxruntime-{ort.__version__} exact-{_multiplies_int8_exactly(CPU_INFO)}"
        self.policy = Policy()
        # Whether its policy wants predictions run as one, and that saves time.
        self.batches = False
        # What a prediction costs, on average: the warm-up's at first, then that of requests, photos decoded.
        self.seconds = 0.0
        self.load_seconds = 0.0
        try:
            self._session = ort.InferenceSession(
                package.model, session_options(intra_op_threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # whatever the runtime trips over in a hostile or damaged graph
            raise PackageRefused(f"model.onnx: ONNX Runtime refuses it: {_first_line(error)}") from None
        # PERF: it keeps the file's bytes in case it has to start again with another provider, and there is none.
        self._session._model_bytes = None  # noqa: SLF001
        # PERF: its own run() does the same behind checks of names and types that requests have passed already.
        self._run = self._session._sess.run  # noqa: SLF001
        _check_signature("input", self.manifest.inputs, self._session.get_inputs())
        _check_signature("output", self.manifest.outputs, self._session.get_outputs())
        self._output_names = [spec.name for spec in self.manifest.outputs]

    def run(self, feeds: dict[str, Tensor], outputs: list[str] | None, options: ort.RunOptions) -> list[Tensor]:
        """The arrays of the wanted `outputs` (None: all, in the manifest's order) for one array per input."""
        try:
            return self._run(outputs or self._output_names, feeds, options)  # type: ignore[no-any-return]
        except InvalidArgument as error:  # well-formed, but for instance an index beyond the end of a table
            raise InvalidInput(f"model {self.manifest.name}: refuses these values: {_first_line(error)}") from None
        except Exception as error:
            if options.terminate:
                raise DeadlineExceeded(f"model {self.manifest.name}: stopped at the deadline") from None
            raise InferenceFailed(f"model {self.manifest.name}: {_first_line(error)}") from error

    def warm_up(self) -> None:
        """Run on inputs of the real shapes, so that the first request finds memory and kernels prepared."""
        feeds = {spec.name: example(spec) for spec in self.manifest.inputs}
        try:
            for _ in range(WARM_UP_RUNS):
                began = time.perf_counter()
                arrays = self.run(feeds, None, RunOptions())
                self.seconds = time.perf_counter() - began
        except (InferenceFailed, InvalidInput) as error:
            raise PackageRefused(f"model.onnx: fails on a warm-up input of zeros: {error}") from None
        for spec, array in zip(self.manifest.outputs, arrays, strict=True):
            # One row went in, so one comes out.
            shape = (1, *spec.shape[1:]) if self.manifest.max_batch_size else spec.shape
            if not _fits(shape, array.shape):
                raise PackageRefused(f"output '{spec.name}': expected shape {list(shape)}, got {list(array.shape)}")


def load_model(package: Package, intra_op_threads: int) -> Model:
    """A model of `package`, loaded and warm; PackageRefused with the reason if it cannot be."""
    began = time.perf_counter()
    model = Model(package, intra_op_threads)
    model.warm_up()
    model.load_seconds = time.perf_counter() - began
    _return_free_memory()
    return model


def _return_free_memory() -> None:
    """PERF: loading leaves holes in the heap, 6 of 29 MB with the image model, which glibc keeps unless asked."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def session_options(intra_op_threads: int) -> ort.SessionOptions:
    """What every model is served with, and judged with before."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    # The arena keeps what it once took, and one request for too much memory makes those after it fail until the process
    # ends. Without it the shipped models are slower by one or two percent.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4  # failures are raised, and logged once, by us
    # PERF: a plan of memory per input shape pays for fixed shapes only; with batches of any size the plans pile up.
    options.enable_mem_pattern = False
    # PERF: threads that spin between requests take the core from the worker beside them (onnxruntime #11841).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not _multiplies_int8_exactly(CPU_INFO):
        # UINT8 x INT8 products would saturate and change the answers of INT8 models (models/README.md has figures).
        options.add_session_config_entry("session.x64quantprecision", "1")
    # SECURITY: weights outside the file that was hashed are refused: no such folder can exist.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", f"{os.devnull}/none")
    return options


def _multiplies_int8_exactly(cpu_info: Path) -> bool:
    """Whether this processor has VNNI (PERF: which is twice as fast), or is no x86, whose kernels alone saturate."""
    text = cpu_info.read_text() if cpu_info.exists() else ""
    return "vnni" in text or "vendor_id" not in text


def _check_signature(kind: str, expected: tuple[TensorSpec, ...], got: list[ort.NodeArg]) -> None:
    found = {arg.name: arg for arg in got}
    if found.keys() != {spec.name for spec in expected}:
        names = sorted(spec.name for spec in expected)
        raise PackageRefused(f"{kind}s: expected {names} as in the manifest, got {sorted(found)}")
    for spec in expected:
        arg = found[spec.name]
        if spec.datatype not in DATATYPES or arg.type != DATATYPES[spec.datatype].onnx:
            raise PackageRefused(f"{kind} '{spec.name}': expected {spec.datatype} as in the manifest, got {arg.type}")
        shape = tuple(size if isinstance(size, int) else -1 for size in arg.shape)
        if not _fits(shape, spec.shape):
            raise PackageRefused(
                f"{kind} '{spec.name}': expected shape {list(spec.shape)} as in the manifest, got {list(shape)}"
            )


def _fits(general: tuple[int, ...], special: tuple[int, ...]) -> bool:
    """Whether `special` is `general` with some of its variable dimensions (-1) filled in."""
    return len(general) == len(special) and all(a in (-1, b) for a, b in zip(general, special, strict=True))


def example(spec: TensorSpec) -> Tensor:
    """One row of zeros, or of empty texts."""
    shape = [1 if size == -1 else size for size in spec.shape]
    if spec.datatype == "BYTES":
        return np.full(shape, "", object)
    return np.zeros(shape, DATATYPES[spec.datatype].dtype)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0][:300]
