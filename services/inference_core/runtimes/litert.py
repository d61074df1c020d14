"""LiteRT, which was TensorFlow Lite. Tensors have the names of the file's signature, or their own if it has none.

Many such files take one row and no more, as phones have no batches. Those are asked row by row.
"""

from typing import Any

import ai_edge_litert
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from inference_core.errors import PackageRefused
from inference_core.manifest import Package, TensorSpec
from inference_core.runtimes.engine import Engine, Stop, check_signature, in_short
from inference_core.tensors import DATATYPES, Tensor

NAMES = {datatype.dtype.type: name for name, datatype in DATATYPES.items()}


def load(package: Package, intra_op_threads: int) -> Engine:
    try:
        interpreter = Interpreter(model_content=package.model, num_threads=intra_op_threads)
        inputs, outputs = _tensors(interpreter)
    except Exception as error:  # whatever the runtime trips over in a hostile or damaged file
        raise PackageRefused(f"{package.manifest.model_file}: LiteRT refuses it: {in_short(error)}") from None
    by_row = package.manifest.max_batch_size > 0 and all(
        _shape(tensor)[:1] == (1,) for tensor in (*inputs.values(), *outputs.values())
    )
    for kind, specs, tensors in (
        ("input", package.manifest.inputs, inputs),
        ("output", package.manifest.outputs, outputs),
    ):
        check_signature(kind, specs, [_spec(name, tensor, by_row) for name, tensor in tensors.items()])
    graph = _Graph(interpreter, inputs, outputs)
    return Engine(f"litert-{ai_edge_litert.__version__}", graph.run_rows if by_row else graph.run)


class _Graph:
    """Its memory is laid out for inputs of certain shapes, and anew when others come."""

    def __init__(self, interpreter: Any, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        self._interpreter = interpreter
        self._inputs = {name: tensor["index"] for name, tensor in inputs.items()}
        self._outputs = {name: tensor["index"] for name, tensor in outputs.items()}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def run(self, wanted: list[str], feeds: dict[str, Tensor], stop: Stop) -> list[Tensor]:
        shapes = {name: feeds[name].shape for name in self._inputs}
        if shapes != self._shapes:
            self._lay_out(shapes)
        for name, index in self._inputs.items():
            self._interpreter.set_tensor(index, feeds[name])
        self._interpreter.invoke()
        if stop.terminate:
            raise TimeoutError
        return [self._interpreter.get_tensor(self._outputs[name]) for name in wanted]

    def run_rows(self, wanted: list[str], feeds: dict[str, Tensor], stop: Stop) -> list[Tensor]:
        rows = len(next(iter(feeds.values())))
        answers = [
            self.run(wanted, {name: array[row : row + 1] for name, array in feeds.items()}, stop) for row in range(rows)
        ]
        return [np.concatenate(arrays) for arrays in zip(*answers, strict=True)]

    def _lay_out(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = {}  # until it has worked: after a failure it is to be tried again
        for name, shape in shapes.items():
            self._interpreter.resize_tensor_input(self._inputs[name], shape)
        self._interpreter.allocate_tensors()
        self._shapes = shapes


def _tensors(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the runtime says of inputs and outputs, by name."""
    signatures = list(interpreter.get_signature_list())
    if len(signatures) > 1:
        raise ValueError(f"expected one signature, got {signatures}")
    if signatures:
        runner = interpreter.get_signature_runner(signatures[0])
        return runner.get_input_details(), runner.get_output_details()
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    return {tensor["name"]: tensor for tensor in inputs}, {tensor["name"]: tensor for tensor in outputs}


def _spec(name: str, tensor: Any, by_row: bool) -> TensorSpec:
    """A type that the protocol does not have keeps the name that numpy has for it."""
    shape = _shape(tensor)
    return TensorSpec(name, NAMES.get(tensor["dtype"], tensor["dtype"].__name__), (-1, *shape[1:]) if by_row else shape)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor["shape_signature"].tolist())
