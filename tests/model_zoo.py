"""Tiny real models, made on the spot, each for one thing that a test wants to see; and packages of them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

FLOAT, HALF, INT64, UINT8, BOOL, STRING, DOUBLE = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT64,
    TensorProto.UINT8,
    TensorProto.BOOL,
    TensorProto.STRING,
    TensorProto.DOUBLE,
)
DATATYPES = {FLOAT: "FP32", HALF: "FP16", DOUBLE: "FP64", BOOL: "BOOL", STRING: "BYTES"} | {
    getattr(TensorProto, name): name
    for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
}


class Zoo:
    """A model repository in the making: `zoo.scale()` adds a model called "scale" in its next version."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def scale(self, name: str = "scale", version: int = 1, factor: float = 2.0, rows: int = 4) -> Path:
        """FP32 [-1, 3] times `factor`."""
        factors = numpy_helper.from_array(np.array([factor], np.float32), "factor")
        model = _model(
            [helper.make_node("Mul", ["x", "factor"], ["y"])],
            {"x": (FLOAT, [None, 3])},
            {"y": (FLOAT, [None, 3])},
            [factors],
        )
        return self.add(name, version, model, rows)

    def named(self) -> Path:
        """FP32 [-1, 3] with named features in; two outputs: their sum and whether it is positive."""
        zero = numpy_helper.from_array(np.array([0], np.float32), "zero")
        axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
        nodes = [
            helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=0),
            helper.make_node("Greater", ["total", "zero"], ["positive"]),
        ]
        model = _model(
            nodes, {"x": (FLOAT, [None, 3])}, {"total": (FLOAT, [None]), "positive": (BOOL, [None])}, [zero, axes]
        )
        return self.add("named", 1, model, 4, features=["width", "height", "depth"])

    def mixed(self) -> Path:
        """An INT64 [-1] and an FP32 [-1, 2] input; their copies out."""
        nodes = [helper.make_node("Identity", ["a"], ["a_out"]), helper.make_node("Identity", ["b"], ["b_out"])]
        model = _model(
            nodes,
            {"a": (INT64, [None]), "b": (FLOAT, [None, 2])},
            {"a_out": (INT64, [None]), "b_out": (FLOAT, [None, 2])},
        )
        return self.add("mixed", 1, model, 4)

    def copy(self, name: str, kind: int) -> Path:
        """[-1, 2] of any data type, and its copy out."""
        model = _model([helper.make_node("Identity", ["x"], ["y"])], {"x": (kind, [None, 2])}, {"y": (kind, [None, 2])})
        return self.add(name, 1, model, 4)

    def positive(self) -> Path:
        """FP32 [-1] in; INT64 [-1] out: where it is positive, so that rows in are not rows out."""
        zero = numpy_helper.from_array(np.array([0], np.float32), "zero")
        axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
        nodes = [
            helper.make_node("Greater", ["x", "zero"], ["some"]),
            helper.make_node("NonZero", ["some"], ["where"]),
            helper.make_node("Squeeze", ["where", "axes"], ["y"]),
        ]
        model = _model(nodes, {"x": (FLOAT, [None])}, {"y": (INT64, [None])}, [zero, axes])
        return self.add("positive", 1, model, 4)

    def external(self, location: str) -> Path:
        """FP32 [-1, 3] times a factor that lies in another file."""
        factor = TensorProto(name="factor", data_type=FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", "0"), ("length", "4")):
            factor.external_data.add(key=key, value=value)
        model = _model(
            [helper.make_node("Mul", ["x", "factor"], ["y"])],
            {"x": (FLOAT, [None, 3])},
            {"y": (FLOAT, [None, 3])},
            [factor],
        )
        return self.add("external", 1, model, 4)

    def count(self) -> Path:
        """INT64 [1] n in; UINT8 [-1] out: n bytes 0, 1, 2 ... modulo 251. No batch dimension."""
        constants = [
            numpy_helper.from_array(np.array(value, np.int64), name)
            for name, value in (("zero", 0), ("one", 1), ("m", 251))
        ]
        nodes = [
            helper.make_node("Squeeze", ["n"], ["limit"]),
            helper.make_node("Range", ["zero", "limit", "one"], ["all"]),
            helper.make_node("Mod", ["all", "m"], ["small"]),
            helper.make_node("Cast", ["small"], ["bytes"], to=UINT8),
        ]
        model = _model(nodes, {"n": (INT64, [1])}, {"bytes": (UINT8, [None])}, constants)
        return self.add("count", 1, model, 0)

    def endless(self) -> Path:
        """A loop that never ends, but asks between its turns whether it should."""
        trips = numpy_helper.from_array(np.array(2**62, np.int64), "trips")
        true = numpy_helper.from_array(np.array(True), "true")
        body = helper.make_graph(
            [helper.make_node("Identity", ["go_in"], ["go_out"]), helper.make_node("Add", ["v", "v"], ["v_out"])],
            "body",
            [
                helper.make_tensor_value_info("i", INT64, []),
                helper.make_tensor_value_info("go_in", BOOL, []),
                helper.make_tensor_value_info("v", FLOAT, [1]),
            ],
            [helper.make_tensor_value_info("go_out", BOOL, []), helper.make_tensor_value_info("v_out", FLOAT, [1])],
        )
        # Zero turns for the zeros of the warm-up, endless ones for anything else.
        zero = numpy_helper.from_array(np.array([0], np.float32), "zero")
        nodes = [
            helper.make_node("Greater", ["x", "zero"], ["some"]),
            helper.make_node("Squeeze", ["some"], ["go"]),
            helper.make_node("Loop", ["trips", "go", "x"], ["y"], body=body),
        ]
        model = _model(nodes, {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}, [trips, true, zero])
        return self.add("endless", 1, model, 0)

    def hang(self) -> Path:
        """INT64 [1] n: a product of two n x n matrices in one node, which cannot be stopped half-way."""
        nodes = [
            helper.make_node("Concat", ["n", "n"], ["shape"], axis=0),
            helper.make_node("ConstantOfShape", ["shape"], ["m"], value=helper.make_tensor("v", DOUBLE, [1], [1.0])),
            helper.make_node("MatMul", ["m", "m"], ["product"]),
            helper.make_node("ReduceSum", ["product"], ["y"], keepdims=0),
        ]
        model = _model(nodes, {"n": (INT64, [1])}, {"y": (DOUBLE, [])})
        return self.add("hang", 1, model, 0)

    def slow(self, size: int = 1000, warm_up_size: int = 2000) -> Path:
        """FP32 [-1, 3] times two, after a product of two matrices; for the zeros of the warm-up, of larger ones."""
        constants = [
            numpy_helper.from_array(np.array(value, kind), name)
            for name, value, kind in (
                ("zero", 0, np.float32),
                ("two", 2, np.float32),
                ("usual", [size, size], np.int64),
                ("at_first", [warm_up_size, warm_up_size], np.int64),
            )
        ]
        nodes = [
            helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
            helper.make_node("Greater", ["largest", "zero"], ["some"]),
            helper.make_node("Where", ["some", "usual", "at_first"], ["shape"]),
            helper.make_node("Mul", ["largest", "zero"], ["nothing"]),
            helper.make_node("Expand", ["nothing", "shape"], ["m"]),
            helper.make_node("MatMul", ["m", "m"], ["product"]),
            helper.make_node("ReduceSum", ["product"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["x", "two"], ["doubled"]),
            helper.make_node("Add", ["doubled", "sum"], ["y"]),
        ]
        model = _model(nodes, {"x": (FLOAT, [None, 3])}, {"y": (FLOAT, [None, 3])}, constants)
        return self.add("slow", 1, model, 4)

    def gather(self) -> Path:
        """INT64 [-1] indices into a table of three: others are refused by the runtime, not by the signature."""
        table = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "table")
        model = _model(
            [helper.make_node("Gather", ["table", "i"], ["y"])], {"i": (INT64, [None])}, {"y": (FLOAT, [None])}, [table]
        )
        return self.add("gather", 1, model, 4)

    def beyond(self) -> Path:
        """INT64 [-1] indices, each moved beyond a table of three: refused by the runtime whatever they are."""
        table = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "table")
        three = numpy_helper.from_array(np.array([3], np.int64), "three")
        nodes = [helper.make_node("Add", ["i", "three"], ["j"]), helper.make_node("Gather", ["table", "j"], ["y"])]
        model = _model(nodes, {"i": (INT64, [None])}, {"y": (FLOAT, [None])}, [table, three])
        return self.add("beyond", 1, model, 4)

    def colour(self, size: int = 8) -> Path:
        """A model of photos: the mean of each channel, as "probabilities" of the labels red, green and blue."""
        axes = numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
        nodes = [helper.make_node("ReduceMean", ["image", "axes"], ["p"], keepdims=0)]
        model = _model(nodes, {"image": (FLOAT, [None, 3, size, size])}, {"p": (FLOAT, [None, 3])}, [axes])
        image = {
            "input": "image",
            "output": "p",
            "size": size,
            "crop_fraction": 1.0,
            "mean": [0.0, 0.0, 0.0],
            "scale": [255.0, 255.0, 255.0],
        }
        return self.add("colour", 1, model, 4, image=image, labels=["red", "green", "blue"])

    def garbage(self, name: str, version: int = 1) -> Path:
        """A package that is as its manifest says, but that no runtime can load."""
        folder = self.scale(name, version)
        data = b"garbage"
        (folder / "model.onnx").write_bytes(data)
        edit_manifest(folder, model={"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)})
        return folder

    def add(
        self, name: str, version: int, model: ModelProto, rows: int, features: list[str] | None = None, **more: Any
    ) -> Path:
        """Write the package of `model`, whose manifest says what the graph says, but for `more`."""
        data = model.SerializeToString()
        inputs, outputs = ([_spec(value) for value in values] for values in (model.graph.input, model.graph.output))
        if features:
            inputs[0]["features"] = features
        manifest = {
            "name": name,
            "version": str(version),
            "description": f"{name}, for tests",
            "model": {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)},
            "inputs": inputs,
            "outputs": outputs,
            "max_batch_size": rows,
            "licence": "Apache-2.0",
            "source": {},
            "metrics": {},
            "built": {},
            **more,
        }
        folder = self.root / name / str(version)
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(data)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _model(
    nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], constants: list[Any] | None = None
) -> ModelProto:
    def values(specs: dict[str, Any]) -> list[Any]:
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in specs.items()]

    graph = helper.make_graph(nodes, "graph", values(inputs), values(outputs), constants or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _spec(value: Any) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    return {"name": value.name, "datatype": DATATYPES[tensor.elem_type], "shape": shape}
