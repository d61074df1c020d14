"""What runs a package's model: ONNX Runtime, and two others for who has a file for one of those only.

To add one: a module with `load`, lines here and in `manifest.MODEL_FILES`, an extra of its name in pyproject.toml, its
platform in `inference_api/v2.py`, a test, and a row in models/README.md.
"""

from inference_core.errors import PackageRefused
from inference_core.manifest import Package
from inference_core.runtimes import onnx
from inference_core.runtimes.engine import Engine

# What an extra of that name brings.
NEEDS = {"torchscript": "PyTorch", "litert": "LiteRT"}


def load_engine(package: Package, intra_op_threads: int, spinning: bool) -> Engine:
    """The package's model, in the runtime that its manifest names; PackageRefused if that one is not installed.

    `spinning` is for ONNX Runtime's threads alone.
    """
    runtime = package.manifest.runtime
    if runtime == "onnx":
        return onnx.load(package, intra_op_threads, spinning)
    try:
        # PERF: PyTorch takes a second and 130 MB, which only those pay who serve such a model.
        if runtime == "torchscript":
            from inference_core.runtimes.torchscript import load  # noqa: PLC0415
        else:
            from inference_core.runtimes.litert import load  # noqa: PLC0415
    except (ImportError, OSError) as error:  # a library of theirs may be missing, too
        raise PackageRefused(
            f"{package.manifest.model_file}: expected {NEEDS[runtime]}, which is not installed: "
            f"pip install 'tiercel[{runtime}]' ({error})"
        ) from None
    return load(package, intra_op_threads)
