"""What several passes need to know about the graph of an ONNX model."""

from typing import Any, NamedTuple

# Operators whose second input is their weights.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Weighted(NamedTuple):
    node: Any
    weight: Any


def weighted_nodes(graph: Any) -> list[Weighted]:
    """The nodes whose weights are constants, in the order of the graph, with those (a `TensorProto` each)."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    return [
        Weighted(node, constants[node.input[1]])
        for node in graph.node
        if node.op_type in WEIGHTED and node.input[1] in constants
    ]


def name_nodes(graph: Any) -> None:
    """Give each node a name, by which it can be left out of a pass; exporters need not."""
    for index, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
