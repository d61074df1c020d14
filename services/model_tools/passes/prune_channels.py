"""Structured pruning: whole channels go, and with them the work that they cost."""

from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference_core.errors import PackageRefused
from model_tools.artifact import Artifact, LossyPass
from model_tools.export import to_bytes
from model_tools.graph import name_nodes

# What works on each channel by itself, so that one can be missing.
CHANNEL_WISE = ("Relu", "LeakyRelu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity")
FLATTENS = ("Flatten", "Reshape")


class Layer(NamedTuple):
    """A Conv of one group or a Gemm, with the axes of its weights that are its channels in and out."""

    node: Any
    into: int
    out: int


class PruneChannels(LossyPass, frozen=True, tag="prune-channels"):
    """Of each layer that feeds one other, the `share` of the channels whose weights have the smallest L2 norm.

    The model becomes smaller and does less. It is a chain of Conv and Gemm that is pruned, with what works on each
    channel by itself in between; where a tensor goes to two places, as around a residual connection, all channels stay.
    """

    share: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    # Names of nodes that keep their channels.
    leave_nodes: tuple[str, ...] = ()

    def apply(self, artifact: Artifact) -> Artifact:
        import onnx

        model = onnx.load_from_string(artifact.model)
        name_nodes(model.graph)
        chains = _Chains(model.graph)
        pruned = {}
        for node in model.graph.node:
            pair = None if node.name in self.leave_nodes else chains.pair(node)
            if pair and (gone := chains.prune(*pair, self.share)):
                pruned[node.name] = gone
        if not pruned:
            raise PackageRefused(f"{self.name}: expected a layer (Conv, Gemm) that feeds only one other, found none")
        return self._made(artifact, to_bytes(model), channels_pruned=pruned)


class _Chains:
    """Which layers follow one another in a graph, and their weights."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._consumers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)
        self._outputs = {output.name for output in graph.output}

    def pair(self, node: Any) -> tuple[Layer, Layer, list[Any]] | None:
        """The layer at `node`, the only one that it feeds, and what flattens between them; None if it is not so."""
        first = self._layer(node)
        flattening: list[Any] = []
        while first and (node := self._only_consumer(node)):
            second = self._layer(node)
            if second:
                fits = second.node.op_type == "Gemm" or not flattening
                return (first, second, flattening) if fits else None
            if node.op_type in FLATTENS:
                flattening.append(node)
            elif node.op_type not in CHANNEL_WISE:
                return None
        return None

    def prune(self, first: Layer, second: Layer, flattening: list[Any], share: float) -> int:
        """Take channels out of both; how many."""
        weights = self._array(first.node.input[1])
        channels = weights.shape[first.out]
        following = self._array(second.node.input[1])
        each = following.shape[second.into] // channels  # values of a channel, once flattened
        norms = np.sqrt(np.square(np.moveaxis(weights, first.out, 0).reshape(channels, -1)).sum(axis=1))
        gone = int(share * channels)
        if not gone:
            return 0
        kept = np.sort(np.argsort(norms, kind="stable")[gone:])
        self._keep(first.node.input[1], kept, first.out)
        if len(first.node.input) > 2:
            self._keep(first.node.input[2], kept, 0)
        spread = (kept[:, None] * each + np.arange(each)).ravel()
        self._keep(second.node.input[1], spread, second.into)
        for node in flattening:  # a Reshape to so many columns is one too many now
            node.op_type = "Flatten"
            for shape in node.input[1:]:
                if shape in self._constants and self._consumers[shape] == [node]:
                    self._graph.initializer.remove(self._constants[shape])
            del node.input[1:]
            del node.attribute[:]
        return gone

    def _layer(self, node: Any) -> Layer | None:
        """None unless it is one whose weights are its own, with a bias for each channel if with any."""
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if any(len(self._consumers[name]) > 1 or name not in self._constants for name in node.input[1:]):
            return None
        if len(node.input) > 2 and len(self._constants[node.input[2]].dims) != 1:
            return None
        if node.op_type == "Conv" and ("group" not in attributes or attributes["group"].i == 1):
            return Layer(node, into=1, out=0)
        if node.op_type == "Gemm" and not ("transA" in attributes and attributes["transA"].i):
            turned = "transB" in attributes and attributes["transB"].i
            return Layer(node, into=1, out=0) if turned else Layer(node, into=0, out=1)
        return None

    def _only_consumer(self, node: Any) -> Any | None:
        """Whoever takes the output of `node`, as its first input, if nobody else does."""
        [output, *others] = node.output
        consumers = self._consumers.get(output, [])
        if others or output in self._outputs or len(consumers) != 1 or consumers[0].input[0] != output:
            return None
        return consumers[0]

    def _array(self, name: str) -> NDArray[Any]:
        from onnx import numpy_helper

        return np.asarray(numpy_helper.to_array(self._constants[name]))

    def _keep(self, name: str, indices: NDArray[Any], axis: int) -> None:
        from onnx import numpy_helper

        kept = np.ascontiguousarray(np.take(self._array(name), indices, axis))
        self._constants[name].CopyFrom(numpy_helper.from_array(kept, name))
