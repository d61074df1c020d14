"""Preprocessing folded into the graph, so that clients send what they have."""

from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference_core.errors import PackageRefused
from inference_core.manifest import AboveZero
from model_tools.artifact import Artifact, Feed, Pass
from model_tools.export import to_bytes

Values = Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=4096)]


class FoldPreprocessing(Pass, frozen=True, tag="fold-preprocessing"):
    """`(value - mean) / scale` in the graph, in front of all else: one pair of numbers, or one for each of axis 1.

    `UINT8` as `datatype` makes the input a quarter as large. It must be the first pass, because the data of the recipe
    are then what clients send, and the source is fed what this makes of them.
    """

    mean: Values
    scale: Annotated[tuple[AboveZero, ...], msgspec.Meta(min_length=1, max_length=4096)]
    datatype: Literal["FP32", "UINT8"] = "FP32"

    def prepare(self, feed: Feed) -> Feed:
        """What the source is fed for the rows in `feed`; PackageRefused unless they are of one input that fits."""
        if len(feed) != 1:
            raise PackageRefused(f"{self.name}: expected a model with one input, got {sorted(feed)}")
        [(name, rows)] = feed.items()
        expected = np.dtype(np.uint8 if self.datatype == "UINT8" else np.float32)
        if rows.dtype != expected:
            raise PackageRefused(f"{self.name}: input '{name}': expected data of {expected}, got {rows.dtype}")
        mean, scale = (self._spread(values, rows.shape) for values in (self.mean, self.scale))
        return {name: (rows.astype(np.float32) - mean) / scale}

    def before(self, module: Any, rows: Feed) -> Any:
        """A PyTorch module that takes what clients send, of `module` which takes what this makes of it."""
        from model_tools.convert import Prepared

        [array] = rows.values()
        return Prepared(module, *(self._spread(values, array.shape) for values in (self.mean, self.scale)))

    def apply(self, artifact: Artifact) -> Artifact:
        import onnx
        from onnx import helper, numpy_helper

        model = onnx.load_from_string(artifact.model)
        [taken] = model.graph.input
        raw, nodes = taken.name, []
        prepared = f"{raw}_prepared"
        for node in model.graph.node:
            node.input[:] = [prepared if name == raw else name for name in node.input]
        shape = artifact.calibration[raw].shape
        model.graph.initializer.extend(
            numpy_helper.from_array(self._spread(values, shape), f"{raw}_{kind}")
            for kind, values in (("mean", self.mean), ("scale", self.scale))
        )
        wide = raw
        if self.datatype == "UINT8":
            taken.type.tensor_type.elem_type = onnx.TensorProto.UINT8
            wide = f"{raw}_wide"
            nodes.append(helper.make_node("Cast", [raw], [wide], name="widen", to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("Sub", [wide, f"{raw}_mean"], [f"{raw}_centred"], name="centre"))
        nodes.append(helper.make_node("Div", [f"{raw}_centred", f"{raw}_scale"], [prepared], name="scale"))
        nodes.extend(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        return self._made(artifact, to_bytes(model))

    def _spread(self, values: tuple[float, ...], shape: tuple[int, ...]) -> NDArray[Any]:
        """`values` in a shape that meets axis 1 of rows of `shape`."""
        channels = shape[1] if len(shape) > 1 else 1
        if len(values) not in (1, channels):
            raise PackageRefused(f"{self.name}: expected 1 or {channels} numbers as rows have, got {len(values)}")
        return np.array(values, np.float32).reshape(-1, *[1] * (len(shape) - 2))
