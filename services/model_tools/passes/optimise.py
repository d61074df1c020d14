"""Shape inference and graph optimisation."""

import tempfile
from pathlib import Path

import onnxruntime as ort

from model_tools.artifact import Artifact, Pass
from model_tools.export import to_bytes


class Optimise(Pass, frozen=True, tag="optimise"):
    """Infer shapes, fold constants, take out what does nothing.

    NOTE: ONNX Runtime's basic level only. What the higher ones make is for one kind of processor, and the server
    does it anyway when it loads the model.
    """

    def apply(self, artifact: Artifact) -> Artifact:
        import onnx

        inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(artifact.model), data_prop=True)
        with tempfile.TemporaryDirectory() as folder:  # the runtime writes to a path only
            options = ort.SessionOptions()
            options.log_severity_level = 4
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            ort.InferenceSession(inferred.SerializeToString(), options, providers=["CPUExecutionProvider"])
            optimised = onnx.load(options.optimized_model_filepath)
        nodes = {"nodes_before": len(inferred.graph.node), "nodes": len(optimised.graph.node)}
        return self._made(artifact, to_bytes(optimised), **nodes)
