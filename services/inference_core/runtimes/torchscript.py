"""PyTorch's TorchScript. Inputs are passed and outputs taken in the manifest's order, as such files name no outputs.

SECURITY: such a file is a program. It is no pickle that could run any Python, but its operators can read and write
files of the process that loads it. Serve those that you would run; strict mode says whose they are.
"""

import contextlib
import io
import warnings
from typing import Any

import torch

from inference_core.errors import PackageRefused
from inference_core.manifest import Manifest, Package
from inference_core.runtimes.engine import Engine, Stop
from inference_core.tensors import DATATYPES, Tensor


def load(package: Package, intra_op_threads: int) -> Engine:
    _set_threads(intra_op_threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit as such
            module = torch.jit.load(io.BytesIO(package.model), map_location="cpu").eval()
        parameters = module.forward.schema.arguments[1:]
    except Exception as error:  # whatever PyTorch trips over in a hostile or damaged file
        raise PackageRefused(f"{package.manifest.model_file}: PyTorch refuses it: {_reason(error)}") from None
    _check_signature(package.manifest, parameters)
    inputs = [spec.name for spec in package.manifest.inputs]
    outputs = [spec.name for spec in package.manifest.outputs]

    def run(wanted: list[str], feeds: dict[str, Tensor], stop: Stop) -> list[Tensor]:
        try:
            with torch.inference_mode():
                # Copies: a module may write into what it is given, and requests' bytes are not to be written into.
                answer = module(*[torch.tensor(feeds[name]) for name in inputs])
        except RuntimeError as error:
            raise RuntimeError(_reason(error)) from None
        if stop.terminate:
            raise TimeoutError
        answers = answer if isinstance(answer, tuple | list) else [answer]
        arrays = {name: tensor.numpy(force=True) for name, tensor in zip(outputs, answers, strict=True)}
        return [arrays[name] for name in wanted]

    return Engine(f"torch-{torch.__version__}", run)


def _set_threads(intra_op: int) -> None:
    """NOTE: for the whole process, whose models all have the same."""
    torch.set_num_threads(intra_op)
    # It can be set once, and no more where the pool is in use already, as in a build.
    with contextlib.suppress(RuntimeError):
        torch.set_num_interop_threads(1)


def _check_signature(manifest: Manifest, parameters: list[Any]) -> None:
    """How many inputs; their types and the outputs are what the warm-up is for, as a TorchScript file says neither."""
    for spec in (*manifest.inputs, *manifest.outputs):
        if spec.datatype not in DATATYPES:
            raise PackageRefused(f"'{spec.name}': expected one of {', '.join(DATATYPES)}, got {spec.datatype}")
    expected = [spec.name for spec in manifest.inputs]
    got = [parameter.name for parameter in parameters if not parameter.has_default_value()]
    if len(expected) != len(got):
        raise PackageRefused(f"inputs: expected {expected} as in the manifest, got {got}")


def _reason(error: Exception) -> str:
    """The last line: before it stand the model's own sources."""
    return str(error).strip().rsplit("\n", 1)[-1][:300]
