"""Each layer of a model in INT8, beside what it was."""

import numpy as np
import onnx
import pytest
from recipes import OUTLIER, network, rows

from model_tools.artifact import Artifact
from model_tools.layers import BINS, Layer, compare_layers
from model_tools.passes.static_int8 import StaticInt8

ROWS = {"x": rows(64, seed=0)}


def layers_of(model: onnx.ModelProto, step: StaticInt8) -> dict[str, Layer]:
    before = Artifact(model.SerializeToString(), ROWS, "p")
    return compare_layers(before.model, step.apply(before).model, ROWS)


def test_each_layer_is_compared() -> None:
    """It has moved a little, and calibration has seen all of its range and nothing beyond."""
    layers = layers_of(network(width=64), StaticInt8())
    assert layers.keys() == {"first", "second"}
    for layer in layers.values():
        assert 0 < layer.error < 0.05
        assert layer.cut_off == 0
        assert len(layer.counts) == BINS + 2
        assert layer.low <= 0 < layer.high
    # 32 rows of 64 numbers each.
    assert sum(layers["first"].counts) == 32 * 64


def test_the_layer_that_is_spoilt_is_seen() -> None:
    """Its error is many times what it is without the outlier."""
    well = layers_of(network(), StaticInt8(per_channel=False))
    spoilt = layers_of(network(outlier=OUTLIER), StaticInt8(per_channel=False))
    assert spoilt["first"].error > 10 * well["first"].error


def test_what_a_narrow_range_cuts_off_is_counted() -> None:
    """By the percentile that was asked for."""
    layers = layers_of(network(width=64), StaticInt8(method="percentile", percentile=95))
    assert layers["first"].cut_off > 0.01
    assert layers["first"].counts[-1] > 0


def test_a_layer_that_stays_as_it_was_has_no_range() -> None:
    """Nothing has moved before the first layer in INT8."""
    layers = layers_of(network(), StaticInt8(leave_nodes=("first",)))
    assert layers["second"].counts
    assert layers["first"].error < layers["second"].error


def test_a_layer_of_nothing_has_not_moved() -> None:
    """All its outputs are zero, before and after."""
    model = network()
    for tensor in model.graph.initializer:
        if tensor.name == "w2":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tensor.dims, np.float32), "w2"))
    before = model.SerializeToString()
    assert compare_layers(before, before, ROWS)["second"].error == 0


@pytest.mark.parametrize(("counts", "share"), [((), 0.0), ((1, 8, 1), 0.2), ((0, 5, 0), 0.0)])
def test_what_is_cut_off_is_a_share(counts: tuple[int, ...], share: float) -> None:
    assert Layer(0.1, -1.0, 1.0, counts).cut_off == share
