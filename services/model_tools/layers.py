"""What INT8 has made of each layer of a model: how far its output has moved, and how its range holds what comes."""

from typing import Any

import msgspec
import numpy as np

from model_tools.artifact import Feed, rows_of, slice_rows
from model_tools.graph import name_nodes, weighted_nodes
from model_tools.validate import Array, open_model

# Of calibration; all outputs of all layers are computed for each.
ROWS = 32
BINS = 24
ACTIVATIONS = ("Relu", "Clip")


class Layer(msgspec.Struct, frozen=True):
    """`error`: of its output, with all layers before it in INT8 as well, in parts of the output's L2 norm.

    `counts`: of what the output was in FP32, in as many bins from `low` to `high`, the range that INT8 has for it, with
    one more on each side for what the range cuts off. None of these if its output stays FP32.
    """

    error: float
    low: float = 0.0
    high: float = 0.0
    counts: tuple[int, ...] = ()

    @property
    def cut_off(self) -> float:
        """The share of values that are outside of the range."""
        return (self.counts[0] + self.counts[-1]) / sum(self.counts) if self.counts else 0.0


def compare_layers(before: bytes, after: bytes, rows: Feed) -> dict[str, Layer]:
    """By name of node, for those with weights whose output is still to be found in `after`."""
    import onnx

    graph, quantised = (onnx.load_from_string(model).graph for model in (before, after))
    name_nodes(graph)
    outputs = _outputs(graph, quantised)
    ranges = {node: _range(quantised, name) for node, (name, _) in outputs.items()}
    moved, norms = dict.fromkeys(outputs, 0.0), dict.fromkeys(outputs, 0.0)
    counts = {node: np.zeros(BINS + 2, np.int64) for node in outputs}
    exact = _answers(before, [name for name, _ in outputs.values()])
    rounded = _answers(after, [name for _, name in outputs.values()])
    for start in range(min(rows_of(rows), ROWS)):  # one by one: a row's outputs are many times its size
        row = slice_rows(rows, start, start + 1)
        expected, got = exact(row), rounded(row)
        for node, (name, name_after) in outputs.items():
            values = expected[name].astype(np.float64)
            moved[node] += float(np.square(values - got[name_after]).sum())
            norms[node] += float(np.square(values).sum())
            if found := ranges[node]:
                counts[node] += _histogram(values, *found)
    return {
        node: Layer(
            (moved[node] / norms[node]) ** 0.5 if norms[node] else 0.0,
            *(ranges[node] or (0.0, 0.0)),
            tuple(counts[node].tolist()) if ranges[node] else (),
        )
        for node in outputs
    }


def _outputs(graph: Any, quantised: Any) -> dict[str, tuple[str, str]]:
    """For each layer its output's name before, and in INT8: of an activation behind it, the quantiser may leave only
    that one's.
    """
    known = {name for node in quantised.node for name in node.output}
    behind = {node.input[0]: node.output[0] for node in graph.node if node.op_type in ACTIVATIONS}
    found = {}
    for layer in weighted_nodes(graph):
        output = layer.node.output[0]
        names = [output, behind[output]] if output in behind else [output]
        pairs = [(name, after) for name in names for after in (f"{name}_DequantizeLinear_Output", name)]
        first = next((pair for pair in pairs if pair[1] in known), None)
        if first:
            found[layer.node.name] = first
    return found


def _range(quantised: Any, output: str) -> tuple[float, float] | None:
    """The least and the largest value that the UINT8 of an output stand for; None if it stays FP32."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in quantised.initializer}
    scale, zero = (constants.get(f"{output}_{name}") for name in ("scale", "zero_point"))
    if scale is None or zero is None:
        return None
    step, at_zero = float(numpy_helper.to_array(scale).item()), int(numpy_helper.to_array(zero).item())
    return -at_zero * step, (255 - at_zero) * step


def _histogram(values: Array, low: float, high: float) -> Array:
    inside = np.linspace(low, high, BINS + 1)
    # Half a step outside is rounded to what is inside.
    margin = (high - low) / 255 / 2
    edges = np.concatenate(([-np.inf], [low - margin], inside[1:-1], [high + margin], [np.inf]))
    return np.histogram(values, edges)[0]


def _answers(model: bytes, outputs: list[str]) -> Any:
    """A function from rows to these outputs of nodes inside the model."""
    import onnx

    changed = onnx.load_from_string(model)
    there = {output.name for output in changed.graph.output}
    names = list(dict.fromkeys(outputs))
    for name in names:
        if name not in there:
            changed.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = open_model(changed.SerializeToString())
    return lambda row: dict(zip(names, session.run(names, row), strict=True))
