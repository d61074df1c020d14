"""The tabular model: scikit-learn's Wisconsin breast cancer data to a small network, written out as ONNX.

`recipe.toml` beside it names these functions. A demonstration of a tabular model, not a medical device.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from model_tools.artifact import Feed
from model_tools.export import OPSET, to_bytes
from model_tools.validate import check, distance, open_model, run

NAME = "breast-cancer"
IR_VERSION = 10  # the one that PyTorch's exporter writes for the same opset
SEED = 0


class Split(NamedTuple):
    """FP32, because that is what the served model is sent."""

    train: NDArray[np.float32]
    held_out: NDArray[np.float32]
    train_classes: NDArray[np.int64]
    held_out_classes: NDArray[np.int64]


@functools.cache
def split() -> Split:
    data = load_breast_cancer()
    rows = data.data.astype(np.float32)
    return Split(*train_test_split(rows, data.target, test_size=0.25, stratify=data.target, random_state=SEED))


def calibration() -> Feed:
    return {"features": split().train}


def held_out() -> Feed:
    return {"features": split().held_out, "labels": split().held_out_classes}


def model() -> bytes:
    """The network in ONNX, which answers as scikit-learn does, or the build stops here."""
    classifier = train(split())
    written = to_bytes(to_onnx(classifier))
    session, rows = open_model(written), {"features": split().held_out}
    classes, probabilities = (run(session, rows, name, len(split().held_out)) for name in ("class_id", "probabilities"))
    check(np.array_equal(classes, classifier.predict(split().held_out)), "classes equal scikit-learn's")
    apart = distance(classifier.predict_proba(split().held_out), probabilities)
    check(apart < 1e-4, f"probabilities equal scikit-learn's, got a difference of {apart}")
    return written


def train(split: Split) -> Pipeline:
    """The smallest of the networks that did best in cross-validation on the training part (see models/README.md)."""
    network = MLPClassifier((32, 16), alpha=1.0, solver="lbfgs", max_iter=1000, random_state=SEED)
    return make_pipeline(StandardScaler(), network).fit(split.train, split.train_classes)


def to_onnx(classifier: Pipeline) -> ModelProto:
    """Three Gemms, the scaler folded into the first, then Softmax and ArgMax.

    NOTE: written out by hand, because what skl2onnx makes of the same pipeline takes 1.4 times as long (see
    models/README.md): it has ai.onnx.ml operators, casts and a look-up of labels.
    """
    nodes, initialisers = dense_layers(*two_class_weights(classifier))
    nodes += [
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["class_id"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 30])],
        [
            helper.make_tensor_value_info("class_id", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2]),
        ],
        initialisers,
    )
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="tiercel")


def two_class_weights(classifier: Pipeline) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Weights and biases of the layers, in FP64, with the scaler in the first and one column per class in the last."""
    scaler, network = (step for _, step in classifier.steps)
    weights, biases = list(network.coefs_), list(network.intercepts_)
    biases[0] = biases[0] - (scaler.mean_ / scaler.scale_) @ weights[0]
    weights[0] = weights[0] / scaler.scale_[:, None]
    # sigmoid(z) is the second of softmax(0, z).
    weights[-1] = np.hstack([np.zeros_like(weights[-1]), weights[-1]])
    biases[-1] = np.hstack([np.zeros_like(biases[-1]), biases[-1]])
    return weights, biases


def dense_layers(
    weights: list[NDArray[np.float64]], biases: list[NDArray[np.float64]]
) -> tuple[list[NodeProto], list[TensorProto]]:
    nodes, initialisers, current = [], [], "features"
    for index, pair in enumerate(zip(weights, biases, strict=True)):
        names = [f"{kind}_{index}" for kind in ("weight", "bias")]
        initialisers += [
            numpy_helper.from_array(values.astype(np.float32), name) for values, name in zip(pair, names, strict=True)
        ]
        last = index == len(weights) - 1
        dense = "logits" if last else f"dense_{index}"
        nodes.append(helper.make_node("Gemm", [current, *names], [dense]))
        if not last:
            current = f"relu_{index}"
            nodes.append(helper.make_node("Relu", [dense], [current]))
    return nodes, initialisers
