"""Rebuild the tabular model: scikit-learn's Wisconsin breast cancer data to a small verified network.

python models/breast-cancer/recipe.py [--replace]

A demonstration of a tabular model, not a medical device.
"""

import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from inference_core.manifest import Manifest, TensorSpec
from model_tools.benchmark import median_latencies, processor
from model_tools.export import OPSET, to_bytes
from model_tools.publish import describe, publish
from model_tools.validate import check, largest_difference, open_model, run

HERE = Path(__file__).resolve().parent
NAME, VERSION = HERE.name, "1"
MAX_BATCH_SIZE = 1024
IR_VERSION = 10  # the one that PyTorch's exporter writes for the same opset
SEED = 0
LATENCY_ROUNDS = 5000


class Split(NamedTuple):
    """FP32, because that is what the served model is sent."""

    train: NDArray[np.float32]
    held_out: NDArray[np.float32]
    train_classes: NDArray[np.int64]
    held_out_classes: NDArray[np.int64]


def main() -> None:
    data = load_breast_cancer()
    split = Split(
        *train_test_split(
            data.data.astype(np.float32), data.target, test_size=0.25, stratify=data.target, random_state=SEED
        )
    )
    classifier = train(split)
    model = to_bytes(to_onnx(classifier))
    metrics = judge(classifier, model, split)
    package = publish(HERE.parent, describe_package(model, metrics, data), model, replace="--replace" in sys.argv)
    write_example(split)
    report(metrics, package.digest)


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


def judge(classifier: Pipeline, model: bytes, split: Split) -> dict[str, Any]:
    """Measure the model on rows that it was not trained on, and refuse to go on if it differs from scikit-learn."""
    session = open_model(model)
    for size in (1, len(split.held_out)):
        classes, probabilities = (run(session, split.held_out, name, size) for name in ("class_id", "probabilities"))
        check(
            np.array_equal(classes, classifier.predict(split.held_out)), f"classes equal scikit-learn's at batch {size}"
        )
        difference = largest_difference(probabilities, classifier.predict_proba(split.held_out))
        check(
            difference < 1e-4, f"probabilities equal scikit-learn's at batch {size}, got a difference of {difference}"
        )
    seconds = median_latencies({"fp32": session}, {"features": split.held_out[:1]}, LATENCY_ROUNDS)["fp32"]
    return {
        "held_out": {
            "rows": len(split.held_out),
            "accuracy_percent": round(100 * float(np.mean(classes == split.held_out_classes)), 2),
            "roc_auc": round(float(roc_auc_score(split.held_out_classes, probabilities[:, 1])), 4),
        },
        "largest_difference_from_scikit_learn": difference,
        "latency_us": {"fp32": round(seconds * 1e6, 1), "threads": 1, "batch": 1, "processor": processor()},
        "size_bytes": {"fp32": len(model)},
    }


def describe_package(model: bytes, metrics: dict[str, Any], data: Any) -> Manifest:
    return Manifest(
        name=NAME,
        version=VERSION,
        description="Malignant or benign, from the Wisconsin breast cancer data. A demonstration, no medical device.",
        model=describe(model),
        inputs=(TensorSpec("features", "FP32", (-1, 30), tuple(map(str, data.feature_names))),),
        outputs=(TensorSpec("class_id", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, 2))),
        max_batch_size=MAX_BATCH_SIZE,
        licence="Apache-2.0",
        source={
            "data": "UCI Breast Cancer Wisconsin (Diagnostic), CC BY 4.0, as shipped in PyPI scikit-learn 1.9.1",
            "training": "StandardScaler and MLPClassifier(32, 16) on a stratified 75 % of the 569 rows, seed 0",
        },
        metrics=metrics,
        built=built(),
        labels=tuple(map(str, data.target_names)),
    )


def built() -> dict[str, str]:
    tools = {name: version(name) for name in ("scikit-learn", "onnx", "onnxruntime", "numpy")}
    return {"recipe": f"models/{NAME}/recipe.py", "python": platform.python_version(), "opset": str(OPSET), **tools}


def write_example(split: Split) -> None:
    """A request body with one held-out row of each class: the first malignant and the first benign."""
    rows = [split.held_out[np.flatnonzero(split.held_out_classes == index)[0]] for index in (0, 1)]
    # The shortest decimals that read back as the same FP32: 17.99, not 17.989999771118164.
    instances = [[float(str(value)) for value in row] for row in rows]
    body = msgspec.json.format(msgspec.json.encode({"instances": instances}), indent=0)
    (HERE / "examples" / "instances.json").write_bytes(body + b"\n")


def report(metrics: dict[str, Any], digest: str) -> None:
    print(f"{NAME}/{VERSION} sha256:{digest}")
    for name, value in metrics.items():
        print(f"  {name}: {value}")


if __name__ == "__main__":
    main()
