import json
from typing import Any

import numpy as np
import pytest
from builders import manifest, tensor

from inference_core.errors import InvalidInput, UnsupportedFeature
from inference_core.schema import Call, decode_request, encode_response

X = tensor("FP32", -1, 2)
ONE = manifest([X])
TWO = manifest(
    [tensor("INT64", -1, name="a"), tensor("FP32", -1, 2, name="b")],
    [tensor("INT64", -1, name="p"), tensor("FP32", -1, 2, name="q")],
)
A = {"name": "a", "shape": [2], "datatype": "INT64", "data": [1, 2]}
B = {"name": "b", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}


def request(**more: Any) -> dict[str, Any]:
    """A request of one row for the model ONE; `more` replaces or adds keys."""
    return {"inputs": [x()], **more}


def x(rows: int = 1, **more: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [rows, 2], "datatype": "FP32", "data": [0.5] * 2 * rows, **more}


def binary_x(data: bytes, size: Any = None, rows: int = 1) -> tuple[bytes, int]:
    """The body and the size of its JSON part."""
    given = {"name": "x", "shape": [rows, 2], "datatype": "FP32", "parameters": {"binary_data_size": size or len(data)}}
    head = json.dumps({"inputs": [given]}).encode()
    return head + data, len(head)


def decode(value: Any, model: Any = ONE, data: bytes | None = None) -> Call:
    """`value` as the JSON part of a request, with `data` after it if there is any."""
    head = json.dumps(value).encode()
    return decode_request(head + (data or b""), len(head) if data is not None else None, model)


def wanted(call: Call) -> list[tuple[str, bool]]:
    return [(spec.name, as_binary) for spec, as_binary in call.outputs]


def test_a_request_becomes_arrays() -> None:
    """Each input becomes an array that fits the model; without `outputs` all are wanted, as JSON."""
    call = decode({"inputs": [B, A]}, TWO)
    assert call.feeds["a"].tolist() == [1, 2]
    assert call.feeds["b"].tolist() == [[1, 2], [3, 4]]
    assert wanted(call) == [("p", False), ("q", False)]


@pytest.mark.parametrize("rows", [1, 4])
def test_rows_within_the_bound(rows: int) -> None:
    """One row and the most rows are accepted."""
    assert decode(request(inputs=[x(rows)])).feeds["x"].shape == (rows, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"inputs": [x(5)]}, "rows: expected 1 to 4 for model m, got 5", id="a row too many"),
        pytest.param({"inputs": [x(0)]}, "rows: expected 1 to 4 for model m, got 0", id="no rows"),
        pytest.param({"inputs": []}, "request: expected array of length >= 1 at .inputs", id="no inputs"),
        pytest.param({"inputs": {}}, "request: expected array, got object at .inputs", id="inputs that are no list"),
        pytest.param({"inputs": None}, "request: expected array, got null at .inputs", id="null inputs"),
        pytest.param({"inputs": [x(), x()]}, "input 'x': expected once, got twice", id="an input twice"),
        pytest.param({"inputs": [x(name="y")]}, "input 'y': expected 'x', got an unknown name", id="an unknown input"),
        pytest.param({"inputs": [x(datatype="FP64")]}, "input 'x': expected datatype FP32, got FP64", id="datatype"),
        pytest.param({"inputs": [x(shape=[1, 3])]}, "input 'x': expected shape [-1, 2], got [1, 3]", id="shape"),
        pytest.param({"inputs": [x(shape=[])]}, "input 'x': expected shape [-1, 2], got []", id="no shape"),
        pytest.param(
            {"inputs": [x(shape=[-1, 2])]}, "request: expected int >= 0 at .inputs[0].shape[0]", id="negative"
        ),
        pytest.param(
            {"inputs": [x(shape=[1, 2.0])]}, "request: expected int, got float at .inputs[0].shape[1]", id="float"
        ),
        pytest.param({"inputs": [x(data=[1])]}, "input 'x': expected 2 elements for [1, 2], got 1", id="elements"),
        pytest.param({"inputs": [x(data="ab")]}, "input 'x': expected array, got str", id="data that is no list"),
        pytest.param(
            {"inputs": [{"name": "x"}]}, "request: object missing required field shape at .inputs[0]", id="fields"
        ),
        pytest.param(
            {"outputs": [{"name": "z"}]}, "output 'z': expected 'y', got an unknown name", id="an unknown output"
        ),
        pytest.param(
            {"outputs": [{"name": "y"}, {"name": "y"}]},
            "outputs: expected each name once, got one twice",
            id="output twice",
        ),
        pytest.param({"outputs": "y"}, "request: expected array, got str at .outputs", id="outputs that are no list"),
        pytest.param({"id": 1}, "request: expected str, got int at .id", id="an id that is no string"),
        pytest.param({"parameters": []}, "request: expected object, got array at .parameters", id="parameters"),
        pytest.param({"parameters": {"a": None}}, "request: expected", id="a null parameter"),
        pytest.param({"parameters": {"a": {}}}, "request: expected", id="a parameter that is an object"),
        pytest.param(
            {"parameters": {"triton_a": 1}},
            "parameters: expected no name that starts with 'triton_', got 'triton_a'",
            id="reserved",
        ),
        pytest.param(
            {"parameters": {"timeout": "1"}}, "parameter 'timeout': expected int, got '1'", id="timeout, text"
        ),
        pytest.param(
            {"parameters": {"timeout": 1.5}}, "parameter 'timeout': expected int, got 1.5", id="timeout, float"
        ),
        pytest.param(
            {"parameters": {"timeout": True}}, "parameter 'timeout': expected int, got True", id="timeout, bool"
        ),
        pytest.param(
            {"parameters": {"timeout": -1}},
            "parameter 'timeout': expected 0 to 9223372036854775807",
            id="timeout, negative",
        ),
        pytest.param(
            {"parameters": {"timeout": 2**63}},
            "parameter 'timeout': expected 0 to 9223372036854775807",
            id="timeout, max + 1",
        ),
        pytest.param(
            {"parameters": {"timeout": 10**400}},
            "parameter 'timeout': expected 0 to 9223372036854775807",
            id="timeout, no float",
        ),
        pytest.param(
            {"parameters": {"binary_data_output": 1}},
            "parameter 'binary_data_output': expected bool, got 1",
            id="default",
        ),
        pytest.param(
            {"outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]},
            "parameter 'binary_data': expected bool, got 'yes'",
            id="binary",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], said: str) -> None:
    """The message names what was concerned, what was expected and what came."""
    with pytest.raises(InvalidInput) as refused:
        decode(request(**change))
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([A], "inputs: expected 'a' and 'b', got no 'b'"),
        (
            [A, {**B, "shape": [1, 2], "data": [1, 2]}],
            "inputs: expected the same number of rows in each, got 'a' 2, 'b' 1",
        ),
        ([A, B, {**B, "name": "c"}], "input 'c': expected 'a' and 'b', got an unknown name"),
    ],
)
def test_all_inputs_must_come_together(inputs: list[Any], said: str) -> None:
    """A missing input, one too many, and inputs of unequal rows."""
    with pytest.raises(InvalidInput) as refused:
        decode({"inputs": inputs}, TWO)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classification", 3),
        ("shared_memory_region", "r"),
        ("sequence_id", 1),
        ("sequence_id", "s"),
        ("sequence_start", True),
        ("sequence_end", True),
    ],
)
def test_extensions_that_change_the_meaning_are_refused(name: str, value: Any) -> None:
    """What would be answered otherwise than the client expects is refused, wherever it stands."""
    without_data = {key: item for key, item in x().items() if key != "data"}
    for asked in (
        request(parameters={name: value}),
        request(outputs=[{"name": "y", "parameters": {name: value}}]),
        request(inputs=[{**without_data, "parameters": {name: value}}]),
    ):
        with pytest.raises(UnsupportedFeature, match=rf"^parameter '{name}': this extension is not offered"):
            decode(asked)


def test_extensions_that_are_off_are_ignored() -> None:
    """A sequence id of 0 means no sequence; a priority changes nothing in the answer."""
    call = decode(request(parameters={"sequence_id": 0, "sequence_start": False, "priority": 1, "mine": "x"}))
    assert call.feeds["x"].tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("microseconds", "seconds"), [(0, None), (1, 1e-6), (2_500_000, 2.5), (2**63 - 1, (2**63 - 1) / 1e6)]
)
def test_the_timeout_is_in_microseconds(microseconds: int, seconds: float | None) -> None:
    """The reserved parameter `timeout`; 0 is none."""
    assert decode(request(parameters={"timeout": microseconds})).timeout == seconds
    assert decode(request()).timeout is None


@pytest.mark.parametrize(
    ("parameters", "outputs", "binary"),
    [
        ({}, [], [("p", False), ("q", False)]),
        ({"binary_data_output": True}, [], [("p", True), ("q", True)]),
        ({"binary_data_output": True}, [{"name": "q"}], [("q", True)]),
        (
            {"binary_data_output": True},
            [{"name": "q", "parameters": {"binary_data": False}}, {"name": "p"}],
            [("q", False), ("p", True)],
        ),
        ({"binary_data_output": False}, [{"name": "p", "parameters": {"binary_data": True}}], [("p", True)]),
        ({}, [{"name": "q"}, {"name": "p", "parameters": {"binary_data": True}}], [("q", False), ("p", True)]),
    ],
)
def test_outputs_are_binary_where_asked(
    parameters: dict[str, Any], outputs: list[Any], binary: list[tuple[str, bool]]
) -> None:
    """`binary_data_output` is the default, `binary_data` of an output overrides it; the order is the client's."""
    assert wanted(decode({"inputs": [A, B], "parameters": parameters, "outputs": outputs}, TWO)) == binary


def test_binary_and_json_inputs_mix() -> None:
    """Raw tensors follow the JSON in the order in which the inputs that lack data stand there."""
    raw_a, raw_b = np.array([7, 8], "<i8").tobytes(), np.array([[1, 2], [3, 4]], "<f4").tobytes()
    binary_a = {"name": "a", "shape": [2], "datatype": "INT64", "parameters": {"binary_data_size": 16}}
    binary_b = {"name": "b", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    for inputs, data in (
        ([binary_a, B], raw_a),
        ([A, binary_b], raw_b),
        ([binary_a, binary_b], raw_a + raw_b),
        ([binary_b, binary_a], raw_b + raw_a),
        ([A, B], b""),
    ):
        call = decode({"inputs": inputs}, TWO, data)
        assert call.feeds["a"].tolist() == ([7, 8] if binary_a in inputs else [1, 2])
        assert call.feeds["b"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("padding", range(8))
def test_raw_tensors_may_start_anywhere(padding: int) -> None:
    """However long the JSON is, the tensor after it is aligned when the runtime gets it."""
    body, size = binary_x(np.array([1, 2], "<f4").tobytes())
    array = decode_request(b" " * padding + body, padding + size, ONE).feeds["x"]
    assert array.flags.aligned
    assert array.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("data", "size", "said"),
    [
        (bytes(8), 7, "input 'x': expected 8 bytes for [1, 2], got 7"),
        (bytes(9), 9, "input 'x': expected 8 bytes for [1, 2], got 9"),
        (bytes(9), 8, "body: expected no data after that of the last input, got 1 bytes"),
        (bytes(7), 8, "input 'x': expected 8 bytes of binary data, got 7"),
        (bytes(8), 10**30, f"input 'x': expected {10**30} bytes of binary data, got 8"),
        (bytes(8), -1, "input 'x': expected 'data' or the parameter 'binary_data_size', got neither"),
        (bytes(8), "8", "input 'x': expected 'data' or the parameter 'binary_data_size', got neither"),
        (bytes(8), True, "input 'x': expected 'data' or the parameter 'binary_data_size', got neither"),
        (bytes(8), 8.0, "input 'x': expected 'data' or the parameter 'binary_data_size', got neither"),
    ],
)
def test_binary_sizes_must_agree(data: bytes, size: Any, said: str) -> None:
    """The size in the JSON, the size that the shape needs and the bytes that came are all the same."""
    body, json_size = binary_x(data, size)
    with pytest.raises(InvalidInput) as refused:
        decode_request(body, json_size, ONE)
    assert str(refused.value) == said


def test_json_size_beyond_the_body_is_refused() -> None:
    """The JSON part can be the whole body, but not more."""
    body = json.dumps(request()).encode()
    assert decode_request(body, len(body), ONE).feeds["x"].tolist() == [[0.5, 0.5]]
    with pytest.raises(
        InvalidInput, match=rf"^Inference-Header-Content-Length: expected at most {len(body)}, got {len(body) + 1}$"
    ):
        decode_request(body, len(body) + 1, ONE)


def test_data_after_json_without_a_size_is_refused() -> None:
    """Without the header the whole body is JSON."""
    with pytest.raises(InvalidInput, match=r"^request: JSON is malformed"):
        decode_request(binary_x(bytes(8))[0], None, ONE)


def test_an_input_with_data_and_binary_is_refused() -> None:
    """Data twice is a contradiction."""
    with pytest.raises(InvalidInput, match=r"^body: expected no data after"):
        decode(request(inputs=[x(parameters={"binary_data_size": 8})]), data=bytes(8))


@pytest.mark.parametrize(
    ("spec", "rows", "body", "value"),
    [
        pytest.param(tensor("FP32", -1, 2), 4, np.array([1, 2], "<f4").tobytes(), [[1, 2]], id="one row"),
        pytest.param(tensor("UINT8", -1, -1), 4, b"abc", [[97, 98, 99]], id="its variable dimension filled"),
        pytest.param(tensor("INT16", -1, 2, -1), 4, bytes(8), [[[0, 0], [0, 0]]], id="... beside a fixed one"),
        pytest.param(tensor("UINT8", -1), 0, b"abc", [97, 98, 99], id="no batch"),
        pytest.param(tensor("BYTES", -1, 1), 4, b"text", [["text"]], id="text"),
        pytest.param(tensor("BYTES", 1), 0, b"", [""], id="empty text"),
    ],
)
def test_a_raw_request_is_the_one_input(spec: Any, rows: int, body: bytes, value: Any) -> None:
    """A JSON size of 0: the body is the one input as it is, and every output comes back binary."""
    call = decode_request(body, 0, manifest([spec], rows=rows))
    assert call.feeds["x"].tolist() == value
    assert wanted(call) == [("y", True)]


@pytest.mark.parametrize(
    ("model", "body", "said"),
    [
        (TWO, bytes(8), "raw request: expected a model with one input, got 'a' and 'b'"),
        (manifest([tensor("FP32", -1, -1, -1)]), bytes(8), "raw request: expected at most one variable dimension"),
        (ONE, bytes(7), "input 'x': expected 8 bytes for [1, 2], got 7"),
        (ONE, bytes(16), "input 'x': expected 8 bytes for [1, 2], got 16"),
        (ONE, b"", "input 'x': expected 8 bytes for [1, 2], got 0"),
        (manifest([tensor("FP32", -1, -1)]), b"", "input 'x': expected shape [-1, -1], got [1, 0]"),
        (manifest([tensor("FP32", -1, -1)]), bytes(6), "input 'x': expected 4 bytes for [1, 1], got 6"),
        (manifest([tensor("BYTES", -1, 2)]), b"a", "input 'x': expected shape [-1, 2], got [1, 1]"),
    ],
)
def test_a_raw_request_must_fit_too(model: Any, body: bytes, said: str) -> None:
    """It is for models with one input of at most one variable dimension, and its size must fit."""
    with pytest.raises(InvalidInput) as refused:
        decode_request(body, 0, model)
    assert str(refused.value).startswith(said)


def test_an_answer_mixes_json_and_binary() -> None:
    """Binary outputs follow the JSON in its order; an output has either data or parameters."""
    outputs = [{"name": "q", "parameters": {"binary_data": True}}, {"name": "p"}]
    call = decode({"inputs": [A, B], "outputs": outputs, "id": "i"}, TWO)
    body, json_size = encode_response(call, TWO, [np.array([[1, 2]], np.float32), np.array([3])])

    assert json.loads(body[:json_size]) == {
        "model_name": "m",
        "model_version": "7",
        "id": "i",
        "outputs": [
            {"name": "q", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
            {"name": "p", "datatype": "INT64", "shape": [1], "data": [3]},
        ],
    }
    assert body[json_size:] == np.array([1, 2], "<f4").tobytes()


@pytest.mark.parametrize(("given", "answered"), [({"id": "a b"}, {"id": "a b"}), ({"id": ""}, {"id": ""}), ({}, {})])
def test_the_id_is_echoed(given: dict[str, str], answered: dict[str, str]) -> None:
    """The id comes back as it was given, also if it is empty, and not at all if there was none."""
    body, json_size = encode_response(decode(request(**given)), ONE, [np.zeros((1, 2), np.float32)])
    assert json_size is None
    assert {key: value for key, value in json.loads(body).items() if key == "id"} == answered


def test_nan_is_answered_as_null() -> None:
    """What is no number is null in JSON, and itself in binary."""
    nan = np.array([[np.nan, np.inf]], np.float32)
    body, _ = encode_response(decode(request()), ONE, [nan])
    assert json.loads(body)["outputs"][0]["data"] == [None, None]
    body, json_size = encode_response(decode(request(parameters={"binary_data_output": True})), ONE, [nan])
    assert body[json_size:] == nan.tobytes()


def test_half_floats_are_answered_in_binary_only() -> None:
    """FP16 as JSON is refused with the way out."""
    half = manifest([X], [tensor("FP16", -1, 2, name="y")])
    array = np.zeros((1, 2), np.float16)
    with pytest.raises(InvalidInput, match=r"^output 'y': FP16 has no form in JSON: ask for it with binary_data$"):
        encode_response(decode(request(), half), half, [array])
    body, json_size = encode_response(decode(request(parameters={"binary_data_output": True}), half), half, [array])
    assert body[json_size:] == bytes(4)
