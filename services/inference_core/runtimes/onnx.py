"""ONNX Runtime, the server's engine, which of `inference_core` only this module imports."""

import os
from pathlib import Path

# ONNX Runtime 1.29 and later report usage on Linux unless told not to, from the moment of import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from inference_core.errors import PackageRefused
from inference_core.manifest import Package, TensorSpec
from inference_core.runtimes.engine import Engine, check_signature, in_short
from inference_core.tensors import DATATYPES

CPU_INFO = Path("/proc/cpuinfo")
NAMES = {datatype.onnx: name for name, datatype in DATATYPES.items()}
# Made per run: setting its `terminate` from another thread ends the run at the next node of the graph.
RunOptions = ort.RunOptions


def load(package: Package, intra_op_threads: int, spinning: bool) -> Engine:
    try:
        session = ort.InferenceSession(
            package.model, session_options(intra_op_threads, spinning), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # whatever the runtime trips over in a hostile or damaged graph
        raise PackageRefused(f"{package.manifest.model_file}: ONNX Runtime refuses it: {in_short(error)}") from None
    check_signature("input", package.manifest.inputs, map(spec_of, session.get_inputs()))
    check_signature("output", package.manifest.outputs, map(spec_of, session.get_outputs()))
    version = f"onnxruntime-{ort.__version__} exact-{_multiplies_int8_exactly(CPU_INFO)}"
    # PERF: the session's own run() does the same behind checks of names and types that requests have passed already;
    # and the session goes, which would keep the file's bytes.
    return Engine(version, session._sess.run, (InvalidArgument,))  # noqa: SLF001


def spec_of(value: ort.NodeArg) -> TensorSpec:
    """A type that the protocol does not have keeps the name that ONNX has for it."""
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(value.name, NAMES.get(value.type, value.type), shape)


def session_options(intra_op_threads: int, spinning: bool = False) -> ort.SessionOptions:
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
    # PERF: threads that spin between requests take the core from the worker beside them (onnxruntime #11841), so by
    # default they do not.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
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
