"""Dynamic INT8: weights are quantised here, activations while the model runs."""

import tempfile
from pathlib import Path

from inference_core.errors import PackageRefused
from model_tools.artifact import Artifact, QuantisingPass
from model_tools.export import to_bytes
from model_tools.graph import name_nodes


class DynamicInt8(QuantisingPass, frozen=True, tag="dynamic-int8"):
    """Matrix products only (Gemm becomes MatMul): ONNX Runtime has no quick kernel for a dynamic convolution.

    It needs no calibration. As the range of an activation is that of the whole batch, what else is in a batch can
    change an answer a little.
    """

    per_channel: bool = True
    # Names of nodes that stay in floating point.
    leave_nodes: tuple[str, ...] = ()

    def apply(self, artifact: Artifact) -> Artifact:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.quant_utils import add_pre_process_metadata

        source = onnx.load_from_string(artifact.model)
        name_nodes(source.graph)
        add_pre_process_metadata(source)  # else the quantiser recommends what the pass `optimise` does
        with tempfile.TemporaryDirectory() as folder:  # the quantiser writes to a path only
            path = Path(folder) / "int8.onnx"
            quantize_dynamic(
                source,
                path,
                op_types_to_quantize=["MatMul"],
                per_channel=self.per_channel,
                weight_type=QuantType.QInt8,
                # The quantiser makes a MatMul of each Gemm first, and gives that a name of its own.
                nodes_to_exclude=[f"{name}{ending}" for name in self.leave_nodes for ending in ("", "_MatMul")],
            )
            quantised = onnx.load(path)
        products = sum(node.op_type == "MatMulInteger" for node in quantised.graph.node)
        if not products:
            raise PackageRefused(f"{self.name}: expected products with constant matrices (Gemm, MatMul), found none")
        return self._made(artifact, to_bytes(quantised), quantised_nodes=products)
