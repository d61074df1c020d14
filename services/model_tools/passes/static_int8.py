"""Static INT8, calibrated on the recipe's rows; on request a search for the nodes that it should leave alone."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from inference_core.errors import PackageRefused
from model_tools.artifact import Artifact, Feed, QuantisingPass, rows_of, slice_rows
from model_tools.graph import name_nodes, weighted_nodes
from model_tools.layers import compare_layers
from model_tools.quantise import Method, quantise
from model_tools.validate import Array, agreement, open_model, relative_error, run

METHODS: dict[str, Method] = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
RUN_ROWS = 32


class StaticInt8(QuantisingPass, frozen=True, tag="static-int8"):
    """Weights in INT8, activations in UINT8 with ranges from calibration.

    With `min_agreement`, in percent, it looks at its own answers on the calibration rows. If fewer of them are what the
    model answered before, the layer that does most harm when it alone is quantised goes back to FP32, then the next,
    until enough are, or `max_left` layers have.
    """

    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)] = 99.999
    per_channel: bool = True
    # Calibration uses so many rows at most; entropy and percentile keep all activations of these in memory.
    max_rows: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 256
    # In INT8, Softmax would round every probability below 1/512 to nothing.
    leave_operators: tuple[str, ...] = ("Softmax",)
    leave_nodes: tuple[str, ...] = ()
    # Operators whose outputs stay FP32, such as ["Gemm"] for logits, which 256 levels would make tie.
    leave_outputs_of: tuple[str, ...] = ()
    min_agreement: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    max_left: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8

    def apply(self, artifact: Artifact) -> Artifact:
        rows = slice_rows(artifact.calibration, 0, self.max_rows)
        with tempfile.TemporaryDirectory() as folder:
            quantised = partial(
                quantise,
                artifact.model,
                (slice_rows(rows, index, index + 1) for index in range(rows_of(rows))),
                leave=self.leave_operators,
                method=METHODS[self.method],
                per_channel=self.per_channel,
                options={
                    "OpTypesToExcludeOutputQuantization": list(self.leave_outputs_of),
                    "CalibPercentile": self.percentile,
                    # The percentile method's own default is True, which gives half of the levels behind a ReLU away.
                    "CalibTensorRangeSymmetric": False,
                },
                cache=Path(folder) / "ranges.json",
            )
            model = quantised(leave_nodes=self.leave_nodes)
            if _is_as_before(model):
                raise PackageRefused(f"{self.name}: expected operators that can be quantised (Conv, Gemm), found none")
            found: dict[str, Any] = {}
            if self.min_agreement is not None:
                model, found = self._search(artifact, rows, quantised, model)
        layers = compare_layers(artifact.model, model, rows)
        return self._made(artifact, model, **found, layers=msgspec.to_builtins(layers))

    def _search(
        self, artifact: Artifact, rows: Feed, quantised: "partial[bytes]", model: bytes
    ) -> tuple[bytes, dict[str, Any]]:
        answer = partial(_answer, rows, artifact.output)
        before, left = answer(artifact.model), list(self.leave_nodes)
        reached = agreement(before, answer(model))
        harm: dict[str, float] = {}
        if reached < (self.min_agreement or 0):
            harm = {node: _harm(before, answer(quantised(only_nodes=[node]))) for node in self._layers(artifact)}
        for node in sorted(harm, key=lambda node: harm[node], reverse=True)[: self.max_left]:
            left.append(node)
            model = quantised(leave_nodes=left)
            reached = agreement(before, answer(model))
            if reached >= (self.min_agreement or 0):
                break
        if reached < (self.min_agreement or 0):
            raise PackageRefused(
                f"{self.name}: agreement on {rows_of(rows)} rows of calibration: expected at least "
                f"{self.min_agreement:g} %, got {reached:.2f} % with {', '.join(left) or 'nothing'} left in FP32"
            )
        found = {"left_by_search": left[len(self.leave_nodes) :], "agreement_percent": round(reached, 2), "harm": harm}
        return model, found

    def _layers(self, artifact: Artifact) -> list[str]:
        import onnx

        graph = onnx.load_from_string(artifact.model).graph
        name_nodes(graph)
        names = [layer.node.name for layer in weighted_nodes(graph) if layer.node.op_type not in self.leave_operators]
        return [name for name in names if name not in self.leave_nodes]


def _answer(rows: Feed, output: str, model: bytes) -> Array:
    return run(open_model(model), rows, output, RUN_ROWS)


def _harm(before: Array, after: Array) -> float:
    """How far scores have moved; of class ids, how many are others."""
    if np.issubdtype(before.dtype, np.floating):
        return relative_error(before, after)
    return float(np.mean(before != after))


def _is_as_before(model: bytes) -> bool:
    import onnx

    return not any(node.op_type == "QuantizeLinear" for node in onnx.load_from_string(model).graph.node)
