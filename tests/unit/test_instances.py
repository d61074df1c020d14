import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from builders import image_manifest, manifest, tensor
from PIL import Image

from inference_core.errors import DeadlineExceeded, InvalidInput, PayloadTooLarge
from inference_core.instances import Label, best_labels, decode_instances, to_predictions
from inference_core.manifest import Manifest
from inference_core.tensors import Tensor

ROWS = manifest([tensor("FP32", -1, 3)])
NAMED = manifest([tensor("FP32", -1, 3, features=("width", "height", "depth"))])
TWO = manifest([tensor("INT64", -1, name="a"), tensor("FP32", -1, 2, name="b")])
ONE_ROW = {"width": 1, "height": 2, "depth": 3}
MAX_PIXELS = 64


def in_time() -> None:
    """A deadline that has not passed."""


def decode(instances: Any, model: Manifest) -> dict[str, Tensor]:
    feeds, photos = decode_instances(json.dumps({"instances": instances}).encode(), model, MAX_PIXELS, in_time)
    assert not photos
    return feeds


def photo(colour: str, size: int = 8) -> str:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def decode_photos(instances: Any, model: Manifest | None = None) -> Tensor:
    body = json.dumps({"instances": instances}).encode()
    feeds, photos = decode_instances(body, model or image_manifest(), MAX_PIXELS, in_time)
    assert photos
    assert list(feeds) == ["image"]
    return feeds["image"]


@pytest.mark.parametrize(
    ("instances", "model", "feeds"),
    [
        pytest.param([[1, 2, 3]], ROWS, {"x": [[1, 2, 3]]}, id="the value of the one input"),
        pytest.param([[1, 2, 3]] * 4, ROWS, {"x": [[1, 2, 3]] * 4}, id="the most rows"),
        pytest.param([{"x": [1, 2, 3]}], ROWS, {"x": [[1, 2, 3]]}, id="the one input by name"),
        pytest.param([5, 6], manifest([tensor("INT64", -1)]), {"x": [5, 6]}, id="scalars"),
        pytest.param(["a", "{["], manifest([tensor("BYTES", -1)]), {"x": ["a", "{["]}, id="text"),
        pytest.param([[1, 2, 3]], NAMED, {"x": [[1, 2, 3]]}, id="named features, by position"),
        pytest.param([{"x": [1, 2, 3]}], NAMED, {"x": [[1, 2, 3]]}, id="named features, by input"),
        pytest.param([ONE_ROW], NAMED, {"x": [[1, 2, 3]]}, id="named features, by name"),
        pytest.param(
            [ONE_ROW, {"depth": 6, "width": 4, "height": 5}], NAMED, {"x": [[1, 2, 3], [4, 5, 6]]}, id="in any order"
        ),
        pytest.param(
            [{"a": 1, "b": [2, 3]}, {"b": [5, 6], "a": 4}],
            TWO,
            {"a": [1, 4], "b": [[2, 3], [5, 6]]},
            id="several inputs",
        ),
    ],
)
def test_rows_become_columns(instances: Any, model: Manifest, feeds: dict[str, Any]) -> None:
    """An instance is a row: the value of the one input, an object of inputs, or an object of features."""
    assert {name: array.tolist() for name, array in decode(instances, model).items()} == feeds


@pytest.mark.parametrize(
    ("instances", "model", "said"),
    [
        ([[1, 2, 3]] * 5, ROWS, "rows: expected 1 to 4 for model m, got 5"),
        ([], ROWS, "input 'x': expected shape [-1, 3], got [0]"),
        ([[1, 2]], ROWS, "input 'x': expected shape [-1, 3], got [1, 2]"),
        ([[1, 2, 3], [1, 2]], ROWS, "input 'x': expected lists of equal length"),
        ([1, 2, 3], ROWS, "input 'x': expected array, got int at [0]"),
        ([[1, 2, None]], ROWS, "input 'x': expected float, got null at [0][2]"),
        ([[1, 2, True]], ROWS, "input 'x': expected float, got bool at [0][2]"),
        ([[1, 2, "3"]], ROWS, "input 'x': expected float, got str at [0][2]"),
        ([[1, 2, [3]]], ROWS, "input 'x': expected float, got array at [0][2]"),
        ("abc", ROWS, "input 'x': expected array, got str"),
        ({}, ROWS, "input 'x': expected array, got object"),
        (None, ROWS, "input 'x': expected array, got null"),
        ([{"y": [1, 2, 3]}], ROWS, "instances[0]: expected the 1 names that the model lists, got no 'x' and also 'y'"),
        ([{"x": [1, 2, 3], "y": 1}], ROWS, "instances[0]: expected the 1 names that the model lists, got also 'y'"),
        ([{}], NAMED, "instances[0]: expected the 3 names that the model lists, got no 'depth', 'height', 'width'"),
        (
            [ONE_ROW, {"width": 1, "height": 2}],
            NAMED,
            "instances[1]: expected the 3 names that the model lists, got no 'depth'",
        ),
        (
            [ONE_ROW | {"weight": 1}],
            NAMED,
            "instances[0]: expected the 3 names that the model lists, got also 'weight'",
        ),
        ([ONE_ROW | {"width": "1"}], NAMED, "input 'x': expected float, got str at [0][0]"),
        ([ONE_ROW | {"width": [1]}], NAMED, "input 'x': expected float, got array at [0][0]"),
        ([ONE_ROW, [1, 2, 3]], NAMED, "request: expected object, got array at [1]"),
        (
            [ONE_ROW, {"x": [1, 2, 3]}],
            NAMED,
            "instances[1]: expected the 3 names that the model lists, got no 'depth', 'height', 'width' and also 'x'",
        ),
        ([ONE_ROW] * 5, NAMED, "rows: expected 1 to 4 for model m, got 5"),
        ([[1, 2]], TWO, "instances: expected objects with the inputs a, b, got something else"),
        ([{"a": 1}], TWO, "instances[0]: expected the 2 names that the model lists, got no 'b'"),
        ([{"a": 1, "b": [2]}], TWO, "input 'b': expected shape [-1, 2], got [1, 1]"),
        ([{"a": 1.5, "b": [2, 3]}], TWO, "input 'a': expected int, got float at [0]"),
        ([[1]], manifest([tensor("FP16", -1, 1)]), "input 'x': expected FP16 as binary data"),
        ([[1]], manifest([tensor("FP32", 1)], rows=0), "model m takes no rows: use /v2/models/m/infer"),
    ],
)
def test_instances_that_do_not_fit_are_refused(instances: Any, model: Manifest, said: str) -> None:
    """The message names the row or input, what was expected and what came."""
    with pytest.raises(InvalidInput) as refused:
        decode(instances, model)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"[[1,2,3]]", b"null", b'{"instance": [[1,2,3]]}', b'{"instances": [[1,2,3]}']
)
def test_a_body_without_instances_is_refused(body: bytes) -> None:
    """The body is an object with `instances`."""
    with pytest.raises(InvalidInput, match=r"^request: "):
        decode_instances(body, ROWS, MAX_PIXELS, in_time)


def test_photos_become_one_batch() -> None:
    """Each photo is a row, in order."""
    batch = decode_photos([{"b64": photo("red")}, {"b64": photo("lime")}])
    assert batch.shape == (2, 3, 8, 8)
    assert batch[:, :, 0, 0].tolist() == [[1, 0, 0], [0, 1, 0]]


def test_a_model_of_photos_takes_tensors_too() -> None:
    """Lists are the tensor itself."""
    feeds = decode(np.full((1, 3, 8, 8), 0.5).tolist(), image_manifest())
    assert feeds["image"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("instances", "said"),
    [
        ([{"b64": "not base64!"}], "instances: expected base64 in 'b64', got something else"),
        ([{"b64": "\N{SNOWMAN}"}], "instances: expected base64 in 'b64', got something else"),
        ([{"b64": "AAA"}], "instances: expected base64 in 'b64', got something else"),
        ([{"b64": ""}], "image: expected JPEG, PNG or WEBP, got something else"),
        ([{"b64": "AAAA"}], "image: expected JPEG, PNG or WEBP, got something else"),
        ([{"b64": 1}], "request: expected str, got int at [0].b64"),
        ([{"b64": photo("red"), "x": 1}], "request: object contains unknown field x at [0]"),
        ([{"image": []}], "request: object contains unknown field image at [0]"),
        ([{}], "request: object missing required field b64 at [0]"),
        ([{"b64": photo("red")}, [1]], "request: expected object, got array at [1]"),
        ([{"b64": photo("red")}] * 5, "rows: expected 1 to 4 for model m, got 5"),
    ],
)
def test_photos_that_are_none_are_refused(instances: Any, said: str) -> None:
    """The message says what was expected and what came."""
    with pytest.raises(InvalidInput) as refused:
        decode_photos(instances)
    assert str(refused.value).startswith(said)


def test_the_most_photos_and_pixels_are_accepted() -> None:
    """As many photos as rows, and each of as many pixels as allowed; a pixel more is too large."""
    assert len(decode_photos([{"b64": photo("red")}] * 4)) == 4
    with pytest.raises(PayloadTooLarge, match=r"^image: expected at most 64 pixels, got 9 x 9$"):
        decode_photos([{"b64": photo("red")}, {"b64": photo("red", 9)}])


def test_photos_after_the_deadline_are_not_decoded() -> None:
    """The deadline is looked at before each photo, as a request of many can take long."""
    looks = []

    def passes_at_the_third() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise DeadlineExceeded

    body = json.dumps({"instances": [{"b64": photo("red")}] * 2 + [{"b64": "not decoded"}] * 2}).encode()
    with pytest.raises(DeadlineExceeded):
        decode_instances(body, image_manifest(), MAX_PIXELS, passes_at_the_third)
    assert len(looks) == 3


@pytest.mark.parametrize(
    ("arrays", "predictions"),
    [
        ([np.array([[1.0, 2.0], [3.0, 4.0]])], [[1, 2], [3, 4]]),
        ([np.array([1.5, 2.5], np.float16)], [1.5, 2.5]),
        ([np.array(["a", "b"], object)], ["a", "b"]),
        ([np.array([1, 2]), np.array([[True], [False]])], [{"o0": 1, "o1": [True]}, {"o0": 2, "o1": [False]}]),
    ],
)
def test_columns_become_predictions(arrays: list[Tensor], predictions: list[Any]) -> None:
    """One prediction per row: the value of the one output, or an object of outputs."""
    outputs = tuple(tensor("FP32", -1, name=f"o{i}") for i in range(len(arrays)))
    assert to_predictions(outputs, arrays) == predictions


@pytest.mark.parametrize(("top_k", "best"), [(1, ["c"]), (2, ["c", "a"]), (4, ["c", "a", "b", "d"])])
def test_the_best_labels_come_first(top_k: int, best: list[str]) -> None:
    """The most probable classes, best first; equal ones in the order of their ids."""
    labels = best_labels(np.array([0.2, 0.1, 0.6, 0.1], np.float32), ("a", "b", "c", "d"), top_k)
    assert [label.label for label in labels] == best
    assert labels[0] == Label("c", 2, pytest.approx(0.6))  # type: ignore[arg-type]
