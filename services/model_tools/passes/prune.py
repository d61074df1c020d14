"""Magnitude pruning: the weights that are nearest to zero become zero."""

from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference_core.errors import PackageRefused
from model_tools.artifact import Artifact, LossyPass
from model_tools.export import to_bytes
from model_tools.graph import name_nodes, weighted_nodes


class Prune(LossyPass, frozen=True, tag="prune"):
    """In each layer alike, the `sparsity` share of the weights with the smallest magnitude.

    NOTE: ONNX Runtime stores zeros and multiplies by them like by anything else: the model compresses better for a
    transfer, but is neither smaller nor faster. In PyTorch, prune before the export and go on training after it.
    """

    sparsity: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    # Names of nodes whose weights stay as they are.
    leave_nodes: tuple[str, ...] = ()

    def apply(self, artifact: Artifact) -> Artifact:
        import onnx

        model = onnx.load_from_string(artifact.model)
        name_nodes(model.graph)
        layers = [layer for layer in weighted_nodes(model.graph) if layer.node.name not in self.leave_nodes]
        # Weights that several nodes share are pruned once.
        weights = {layer.weight.name: layer.weight for layer in layers}
        if not weights:
            raise PackageRefused(f"{self.name}: expected layers with constant weights (Conv, Gemm, MatMul), found none")
        zeros = [_prune(weight, self.sparsity) for weight in weights.values()]
        return self._made(artifact, to_bytes(model), layers=len(weights), zeros=sum(zeros))


def _prune(tensor: Any, sparsity: float) -> int:
    """Prune the `TensorProto` in place; how many of its values are zero after that."""
    from onnx import numpy_helper

    pruned = smallest_to_zero(numpy_helper.to_array(tensor), sparsity)
    tensor.CopyFrom(numpy_helper.from_array(pruned, tensor.name))
    return int(np.sum(pruned == 0))


def smallest_to_zero(values: NDArray[Any], sparsity: float) -> NDArray[Any]:
    """`values` with the `sparsity` share of those nearest to zero, rounded down, set to zero."""
    flat = values.ravel().copy()
    count = int(sparsity * flat.size)
    flat[np.argpartition(np.abs(flat), count)[:count]] = 0
    return flat.reshape(values.shape)
