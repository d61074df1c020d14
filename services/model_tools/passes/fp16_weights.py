"""Weights stored in FP16, for half the size."""

from typing import Any

import numpy as np

from inference_core.errors import PackageRefused
from model_tools.artifact import Artifact, LossyPass
from model_tools.export import to_bytes

# Smaller ones cost more in nodes than they save.
MIN_VALUES = 64


class Fp16Weights(LossyPass, frozen=True, tag="fp16-weights"):
    """Halves the file, and nothing else: the runtime widens the weights when it loads the model, and computes in FP32.

    To compute in FP16 would be slower on nearly every CPU, for want of instructions.
    """

    def apply(self, artifact: Artifact) -> Artifact:
        import onnx

        model = onnx.load_from_string(artifact.model)
        wide = [
            t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and _values(t) >= MIN_VALUES
        ]
        if not wide:
            raise PackageRefused(f"{self.name}: expected FP32 weights of {MIN_VALUES} values and more, found none")
        casts = []
        for tensor in wide:
            name, half = tensor.name, _to_half(tensor)
            tensor.CopyFrom(half)
            casts.append(onnx.helper.make_node("Cast", [half.name], [name], name=f"widen_{name}", to=1))
        rest = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(casts + rest)
        return self._made(artifact, to_bytes(model), tensors=len(wide))


def _values(tensor: Any) -> int:
    return int(np.prod(tensor.dims))


def _to_half(tensor: Any) -> Any:
    from onnx import numpy_helper

    array = numpy_helper.to_array(tensor)
    largest = float(np.abs(array).max())
    limit = float(np.finfo(np.float16).max)
    if not largest <= limit:
        raise PackageRefused(
            f"fp16-weights: {tensor.name}: expected values up to {limit:g}, which FP16 has, got {largest:g}"
        )
    return numpy_helper.from_array(array.astype(np.float16), f"{tensor.name}_fp16")
