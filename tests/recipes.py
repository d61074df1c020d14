"""Recipes for tests: a small classifier in ONNX, its rows, and a `recipe.toml` beside them."""

from pathlib import Path

import numpy as np
from model_zoo import FLOAT
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

FEATURES, CLASSES, BATCH = 8, 4, 8
RECIPE = """
name = "blobs"
version = "1"
description = "For tests."
licence = "Apache-2.0"
max_batch_size = 8
output = "p"

[source]
kind = "onnx"
from = "blobs.onnx"

[data]
calibration = "calibration.npz"
held_out = "held_out.npz"
"""
# One weight that dwarfs all others; it belongs to a feature that is 0 in every row.
OUTLIER = 1e4


def network(width: int = FEATURES, outlier: float = 0.0, batch: int | None = None) -> ModelProto:
    """FP32 [-1, 8] x in; FP32 [-1, 4] p out: softmax of two layers. Two features speak for each class.

    `width` is that of the hidden layer, `outlier` a weight in the first layer, of a feature that is always 0.
    """
    first = np.eye(FEATURES, width, dtype=np.float32)
    first[-1] = outlier * first[-1]
    second = 4 * np.kron(np.eye(CLASSES), np.ones((FEATURES // CLASSES, 1))).astype(np.float32)
    second = np.vstack([second, np.zeros((width - FEATURES, CLASSES), np.float32)])
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["hidden"], name="first"),
        helper.make_node("Relu", ["hidden"], ["positive"], name="relu"),
        helper.make_node("Gemm", ["positive", "w2"], ["scores"], name="second"),
        helper.make_node("Softmax", ["scores"], ["p"], name="softmax"),
    ]
    constants = {"w1": first, "b1": np.zeros(width, np.float32), "w2": second}
    graph = helper.make_graph(
        nodes,
        "blobs",
        [helper.make_tensor_value_info("x", FLOAT, [batch, FEATURES])],
        [helper.make_tensor_value_info("p", FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def rows(count: int, seed: int) -> NDArray[np.float32]:
    """`count` rows whose last feature is 0."""
    array = np.random.default_rng(seed).uniform(0, 1, (count, FEATURES)).astype(np.float32)
    array[:, -1] = 0
    return array


def labels(array: NDArray[np.float32]) -> NDArray[np.int64]:
    """What the network says: the class whose two features have the larger sum."""
    return array.reshape(len(array), CLASSES, -1).sum(axis=2).argmax(axis=1)


def write_recipe(folder: Path, more: str = "", model: ModelProto | None = None, recipe: str = RECIPE) -> Path:
    """A recipe with `more` at its end, and what it names; the path of the recipe."""
    (folder / "blobs.onnx").write_bytes((model or network()).SerializeToString())
    np.savez(folder / "calibration.npz", x=rows(64, seed=0))
    held_out = rows(200, seed=1)
    np.savez(folder / "held_out.npz", x=held_out, labels=labels(held_out))
    path = folder / "recipe.toml"
    path.write_text(recipe + more)
    return path
