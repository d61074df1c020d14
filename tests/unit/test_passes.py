from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from model_zoo import FLOAT
from onnx import helper, numpy_helper
from recipes import FEATURES, OUTLIER, labels, network, rows

from inference_core.errors import PackageRefused
from model_tools.artifact import Artifact, Pass
from model_tools.passes.dynamic_int8 import DynamicInt8
from model_tools.passes.fold_preprocessing import FoldPreprocessing
from model_tools.passes.fp16_weights import Fp16Weights
from model_tools.passes.optimise import Optimise
from model_tools.passes.prune import Prune, smallest_to_zero
from model_tools.passes.prune_channels import PruneChannels
from model_tools.passes.static_int8 import StaticInt8
from model_tools.validate import accuracy, agreement, distance, open_model, run

ROWS = rows(200, seed=1)


def artifact(model: onnx.ModelProto | None = None, calibration: np.ndarray | None = None) -> Artifact:
    calibration = rows(64, seed=0) if calibration is None else calibration
    return Artifact((model or network(width=64)).SerializeToString(), {"x": calibration}, "p")


def answers(model: bytes, batch: int = 50) -> np.ndarray:
    return run(open_model(model), {"x": ROWS}, "p", batch)


def operators(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


@pytest.mark.parametrize(
    ("step", "apart"),
    [
        (Optimise(), 1e-6),
        (Fp16Weights(), 1e-2),
        (DynamicInt8(), 0.05),
        (StaticInt8(), 0.05),
        (StaticInt8(method="entropy"), 0.2),
        (StaticInt8(method="percentile", percentile=99.9), 0.05),
        (StaticInt8(per_channel=False), 0.05),
    ],
    ids=repr,
)
def test_answers_stay(step: Pass, apart: float) -> None:
    """Of a well-behaved model each pass keeps the answers, says what it did, and the model takes any batch."""
    before = artifact()
    after = step.apply(before)
    assert distance(answers(before.model), answers(after.model)) < apart
    assert accuracy(answers(after.model, batch=1), labels(ROWS)) > 97
    [done] = after.lineage
    assert (done.name, done.model.size_bytes) == (step.name, len(after.model))
    assert done.options | msgspec.json.decode(msgspec.json.encode(step)) == done.options


def test_optimising_folds_constants() -> None:
    """What does not depend on the input is computed, and what does nothing goes."""
    model = network()
    model.graph.node.insert(0, helper.make_node("Add", ["w2", "w2"], ["w2_twice"]))
    model.graph.node[3].input[1] = "w2_twice"
    model.graph.node.insert(1, helper.make_node("Identity", ["x"], ["same"]))
    model.graph.node[2].input[0] = "same"
    assert operators(Optimise().apply(artifact(model)).model) == ["Gemm", "Relu", "Gemm", "Softmax"]


def test_int8_multiplies_integers() -> None:
    """Weights in a quarter of their bytes; Softmax is left alone."""
    quantised = StaticInt8().apply(artifact()).model
    assert operators(quantised).count("QuantizeLinear") == 3
    assert operators(quantised)[-1] == "Softmax"
    assert operators(DynamicInt8().apply(artifact()).model).count("MatMulInteger") == 2


def test_nodes_are_left_alone_on_request() -> None:
    assert operators(StaticInt8(leave_nodes=("first",)).apply(artifact()).model)[:2] == ["DequantizeLinear", "Gemm"]
    assert operators(DynamicInt8(leave_nodes=("first",)).apply(artifact()).model).count("MatMulInteger") == 1
    pruned = onnx.load_from_string(Prune(0.5, leave_nodes=("first",)).apply(artifact()).model)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in pruned.graph.initializer}
    assert np.array_equal(arrays["w1"], np.eye(FEATURES, 64) * (np.arange(FEATURES) < 7)[:, None])


def test_a_search_finds_the_layer_to_leave_alone() -> None:
    """In one layer all weights but one vanish in INT8 beside that one, and the layer goes back to FP32."""
    spoilt = artifact(network(outlier=OUTLIER))
    blind = StaticInt8(per_channel=False).apply(spoilt).model
    assert agreement(answers(spoilt.model), answers(blind)) < 60
    found = StaticInt8(per_channel=False, min_agreement=99).apply(spoilt)
    options = found.lineage[0].options
    assert options["left_by_search"] == ["first"]
    assert options["harm"]["first"] > 10 * options["harm"]["second"]
    assert agreement(answers(spoilt.model), answers(found.model)) > 98


def test_a_search_without_need_leaves_nothing_alone() -> None:
    found = StaticInt8(min_agreement=90).apply(artifact())
    assert found.lineage[0].options["left_by_search"] == []
    assert found.model == StaticInt8().apply(artifact()).model


def test_a_search_without_success_is_refused() -> None:
    """With what was reached, and by what."""
    spoilt = artifact(two_outliers())
    with pytest.raises(
        PackageRefused,
        match=r"^static-int8: agreement on 64 rows of calibration: expected at least 99 %, got \d.* \w+ left in FP32$",
    ):
        StaticInt8(per_channel=False, min_agreement=99, max_left=1).apply(spoilt)


def two_outliers() -> onnx.ModelProto:
    """Both layers have a weight that dwarfs all others."""
    model = network(outlier=OUTLIER)
    [w2] = [tensor for tensor in model.graph.initializer if tensor.name == "w2"]
    array = numpy_helper.to_array(w2).copy()
    array[-1] = OUTLIER
    w2.CopyFrom(numpy_helper.from_array(array, "w2"))
    return model


def test_calibration_uses_no_more_rows_than_it_may() -> None:
    """The one row beyond the bound would have widened every range."""
    wide = np.vstack([rows(4, seed=0), np.full((1, FEATURES), 1000, np.float32)])
    narrow = StaticInt8(max_rows=4).apply(artifact(calibration=wide)).model
    assert narrow == StaticInt8().apply(artifact(calibration=wide[:4])).model
    assert narrow != StaticInt8(max_rows=5).apply(artifact(calibration=wide)).model


def test_fp16_halves_the_weights() -> None:
    before = artifact(network(width=512))
    after = Fp16Weights().apply(before)
    assert len(after.model) < 0.6 * len(before.model)
    assert after.lineage[0].options["tensors"] == 3


@pytest.mark.parametrize(("largest", "refused"), [(65504.0, False), (65536.0, True)])
def test_weights_that_fp16_has_not_are_refused(largest: float, refused: bool) -> None:
    model = artifact(network(outlier=largest))
    if refused:
        with pytest.raises(PackageRefused, match=r"^fp16-weights: w1: expected values up to 65504, .* got 65536$"):
            Fp16Weights().apply(model)
    else:
        Fp16Weights().apply(model)


@pytest.mark.parametrize(
    ("sparsity", "kept"),
    [(0.01, [-3, 1, 0.5, 2]), (0.25, [-3, 1, 0, 2]), (0.5, [-3, 0, 0, 2]), (0.99, [-3, 0, 0, 0])],
)
def test_the_smallest_weights_go(sparsity: float, kept: list[float]) -> None:
    """By magnitude, in the share that was asked for, rounded down."""
    assert smallest_to_zero(np.array([[-3, 1], [0.5, 2]]), sparsity).ravel().tolist() == kept


def test_pruning_says_how_many_zeros_there_are() -> None:
    """And keeps biases."""
    random = np.random.default_rng(0)
    model = network()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(random.normal(size=tensor.dims).astype(np.float32), tensor.name))
    after = Prune(0.75).apply(artifact(model))
    arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(after.model).graph.initializer}
    assert {name: int(np.sum(array == 0)) for name, array in arrays.items()} == {"w1": 48, "b1": 0, "w2": 24}
    assert after.lineage[0].options == {"pass": "prune", "sparsity": 0.75, "leave_nodes": [], "layers": 2, "zeros": 72}


def convolutions(*, residual: bool = False) -> onnx.ModelProto:
    """FP32 [-1, 1, 4, 4] in; two Conv of 4 channels, of which 2 are 0, MaxPool, Reshape and Gemm to 3 scores."""
    random = np.random.default_rng(0)
    arrays = {
        "w1": random.normal(size=(4, 1, 3, 3)),
        "b1": random.normal(size=4),
        "w2": random.normal(size=(4, 4, 3, 3)),
        "w3": random.normal(size=(3, 16)),
        "b3": random.normal(size=3),
    }
    for name in ("w1", "b1", "w2"):
        arrays[name][1::2] = 0
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    constants.append(numpy_helper.from_array(np.array([-1, 16]), "shape"))
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="two", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1" if residual else "c2"], ["sum"]),
        helper.make_node("MaxPool", ["sum" if residual else "c2"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["m", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["p"], name="three", transB=1),
    ]
    if not residual:
        del nodes[3]
    x, p = (
        helper.make_tensor_value_info(name, FLOAT, [None, *shape]) for name, shape in (("x", (1, 4, 4)), ("p", (3,)))
    )
    graph = helper.make_graph(nodes, "convolutions", [x], [p], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def sizes(model: bytes) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in onnx.load_from_string(model).graph.initializer}


def test_channels_that_say_nothing_go_without_a_trace() -> None:
    """Through activations, pools and what flattens; the work is a quarter, and the answers are the same."""
    feed = {"x": np.random.default_rng(1).normal(size=(10, 1, 4, 4)).astype(np.float32)}
    before = Artifact(convolutions().SerializeToString(), feed, "p")
    after = PruneChannels(0.5).apply(before)
    assert distance(*(run(open_model(model), feed, "p", 10) for model in (before.model, after.model))) < 1e-5
    found = sizes(after.model)
    assert [found[name] for name in ("w1", "b1", "w2", "w3")] == [[2, 1, 3, 3], [2], [2, 2, 3, 3], [3, 8]]
    assert after.lineage[0].options["channels_pruned"] == {"one": 2, "two": 2}


def test_hidden_features_go_with_their_weights() -> None:
    """From one Gemm to the next, whichever way their weights lie."""
    after = PruneChannels(0.875).apply(artifact())
    assert distance(answers(artifact().model), answers(after.model)) < 1e-6
    assert sizes(after.model) == {"w1": [8, 8], "b1": [8], "w2": [8, 4]}


def test_channels_stay_around_a_residual_connection() -> None:
    """As both ways have the same; and where nothing can go, the pass is refused."""
    feed = {"x": np.zeros((1, 1, 4, 4), np.float32)}
    with pytest.raises(PackageRefused, match=r"^prune-channels: expected a layer \(Conv, Gemm\) .*, found none$"):
        PruneChannels(0.5).apply(Artifact(convolutions(residual=True).SerializeToString(), feed, "p"))


def test_layers_keep_their_channels_on_request() -> None:
    feed = {"x": np.zeros((1, 1, 4, 4), np.float32)}
    after = PruneChannels(0.5, leave_nodes=("two",)).apply(Artifact(convolutions().SerializeToString(), feed, "p"))
    assert after.lineage[0].options["channels_pruned"] == {"one": 2}


@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
def test_preprocessing_is_folded(datatype: str) -> None:
    """The graph takes what clients have, and answers as before to what the source would have been fed."""
    raw = np.random.default_rng(0).integers(0, 256, (10, FEATURES)).astype(np.uint8 if datatype == "UINT8" else "f")
    mean, scale = tuple(map(float, range(FEATURES))), (255.0,)
    step = FoldPreprocessing(mean, scale, datatype)  # type: ignore[arg-type]
    before = artifact(calibration=raw)
    after = step.apply(before)
    expected = run(open_model(before.model), step.prepare({"x": raw}), "p", 10)
    assert distance(expected, run(open_model(after.model), {"x": raw}, "p", 10)) < 1e-6
    assert step.prepare({"x": raw})["x"][0, 3] == np.float32((raw[0, 3] - np.float32(3)) / np.float32(255))


@pytest.mark.parametrize(
    ("feed", "said"),
    [
        ({"x": np.zeros((1, 3), np.float64)}, "input 'x': expected data of float32, got float64"),
        ({"x": np.zeros((1, 3), np.float32)}, "expected 1 or 3 numbers as rows have, got 2"),
        ({"x": np.zeros((1, 2), np.float32), "y": np.zeros(1)}, r"expected a model with one input, got \['x', 'y'\]"),
    ],
)
def test_data_that_do_not_fit_preprocessing_are_refused(feed: dict[str, Any], said: str) -> None:
    with pytest.raises(PackageRefused, match=f"^fold-preprocessing: {said}$"):
        FoldPreprocessing((0.0, 0.0), (1.0,)).prepare(feed)


@pytest.mark.parametrize("make", [StaticInt8, DynamicInt8, Fp16Weights, lambda: Prune(0.5), lambda: PruneChannels(0.5)])
def test_a_model_without_weights_is_refused(make: Callable[[], Pass]) -> None:
    """Whoever asks for a pass is told that it did nothing."""
    graph = helper.make_graph(
        [helper.make_node("Exp", ["x"], ["p"])],
        "exp",
        [helper.make_tensor_value_info("x", FLOAT, [None, FEATURES])],
        [helper.make_tensor_value_info("p", FLOAT, [None, FEATURES])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(PackageRefused, match=rf"^{make().name}: expected .*, found none$"):
        make().apply(artifact(model))
