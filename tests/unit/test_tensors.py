import json
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from builders import tensor

from inference_core.errors import InvalidInput
from inference_core.tensors import DATATYPES, check_tensor, from_binary, from_json, from_rows, to_binary, to_json

# Of each datatype: its least and its greatest value, and what is just beyond each.
INTEGERS = {f"{sign}INT{bits}": bits for bits in (8, 16, 32, 64) for sign in ("", "U")}
EXAMPLES: dict[str, list[Any]] = {
    "BOOL": [True, False, False, True],
    **{name: [0, 1, 2, (1 << bits - (name[0] == "I")) - 1] for name, bits in INTEGERS.items()},
    "FP16": [0.0, -1.5, 65504.0, 6e-8],
    "FP32": [0.0, -1.5, 3.4028234663852886e38, 1e-45],
    "FP64": [0.0, -1.5, 1.7976931348623157e308, 5e-324],
    "BYTES": ["", "two words", "\N{SNOWMAN}", "\x00"],
}
IN_JSON = sorted(DATATYPES.keys() - {"FP16"})


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(value if isinstance(value, bytes) else json.dumps(value).encode())


def array(datatype: str) -> Any:
    return np.array(EXAMPLES[datatype], DATATYPES[datatype].dtype).reshape(2, 2)


def test_every_datatype_has_an_example() -> None:
    """The tables of this file know every datatype that the server does."""
    assert EXAMPLES.keys() == DATATYPES.keys()


@pytest.mark.parametrize("datatype", IN_JSON)
@pytest.mark.parametrize("nested", [False, True])
def test_json_in_flat_or_nested(datatype: str, nested: bool) -> None:
    """A JSON array of the elements, flat in row-major order or nested as the shape says, becomes the tensor."""
    a, b, c, d = EXAMPLES[datatype]
    got = from_json(tensor(datatype, -1, 2), (2, 2), raw([[a, b], [c, d]] if nested else [a, b, c, d]))
    assert got.dtype == DATATYPES[datatype].dtype
    np.testing.assert_array_equal(got, array(datatype))


@pytest.mark.parametrize("datatype", IN_JSON)
def test_json_out(datatype: str) -> None:
    """A tensor becomes the flat list of its elements, and what JSON makes of them is the same again."""
    elements = to_json("y", array(datatype))
    again = from_json(tensor(datatype, -1, 2), (2, 2), raw(elements))
    np.testing.assert_array_equal(again, array(datatype))
    assert [type(element) for element in elements] == [DATATYPES[datatype].json] * 4


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("offset", range(8))
def test_binary_in_and_out(datatype: str, offset: int) -> None:
    """Raw elements come and go unchanged, wherever in the body they start; what reaches the runtime is aligned."""
    data = to_binary(array(datatype))
    got = from_binary(tensor(datatype, -1, 2), (2, 2), memoryview(bytes(offset) + data)[offset:])
    np.testing.assert_array_equal(got, array(datatype))
    assert got.flags.aligned
    assert got.dtype == DATATYPES[datatype].dtype


def test_binary_is_little_endian_and_row_major() -> None:
    """The bytes are those of the specification's own example."""
    assert to_binary(np.array([[1, 2], [3, 4]], np.uint32)) == bytes.fromhex("01000000 02000000 03000000 04000000")
    assert to_binary(np.array([[1, 2], [3, 4]], np.uint8).T) == b"\x01\x03\x02\x04"
    assert to_binary(np.array([True, False])) == b"\x01\x00"
    assert to_binary(np.array(["\N{SNOWMAN}", ""], object)) == b"\x03\0\0\0\xe2\x98\x83\0\0\0\0"


@pytest.mark.parametrize(("name", "bits"), INTEGERS.items())
def test_integers_out_of_range_are_refused(name: str, bits: int) -> None:
    """The least and the greatest integer of a type are accepted, the ones beyond them are not."""
    least, greatest = (0, (1 << bits) - 1) if name[0] == "U" else (-(1 << bits - 1), (1 << bits - 1) - 1)
    assert from_json(tensor(name, -1), (2,), raw([least, greatest])).tolist() == [least, greatest]
    for value in (least - 1, greatest + 1, 10**400):
        with pytest.raises(InvalidInput, match=rf"^input 'x': expected values of {name}, got one out of its range"):
            from_json(tensor(name, -1), (1,), raw([value]))


@pytest.mark.parametrize(
    ("name", "value"), [("FP32", b"3.5e38"), ("FP32", b"-1e39"), ("FP64", b"1e309"), ("FP32", b"1e400")]
)
def test_floats_out_of_range_are_refused(name: str, value: bytes) -> None:
    """A number that would become infinite is refused, rather than computed with."""
    with pytest.raises(InvalidInput, match=r"^input 'x': .*out of (its )?range"):
        from_json(tensor(name, -1), (1,), raw(b"[" + value + b"]"))


@pytest.mark.parametrize(
    ("datatype", "element", "said"),
    [
        ("FP32", "true", "expected float, got bool"),
        ("FP32", '"1"', "expected float, got str"),
        ("FP32", "null", "expected float, got null"),
        ("FP32", "{}", "expected float, got object"),
        ("FP32", "NaN", "malformed"),
        ("FP32", "Infinity", "malformed"),
        ("INT64", "1.0", "expected int, got float"),
        ("INT64", "1e2", "expected int, got float"),
        ("INT64", "true", "expected int, got bool"),
        ("UINT8", "9" * 10_000, "out of range"),
        ("BOOL", "1", "expected bool, got int"),
        ("BOOL", '"true"', "expected bool, got str"),
        ("BYTES", "1", "expected str, got int"),
        ("BYTES", "null", "expected str, got null"),
        ("BYTES", '"\\ud800"', "truncated"),
        ("FP16", "1", "expected FP16 as binary data, got JSON"),
    ],
)
def test_elements_of_another_type_are_refused(datatype: str, element: str, said: str) -> None:
    """Nothing is converted silently: the input, what was expected and what came."""
    with pytest.raises(InvalidInput, match=r"^input 'x': ") as refused:
        from_json(tensor(datatype, -1), (1,), raw(f"[{element}]".encode()))
    assert said in str(refused.value)


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BOOL", "BYTES"])
@pytest.mark.parametrize(
    ("shape", "form", "said"),
    [
        ((2, 2), "[a,a,a]", "expected 4 elements for [2, 2], got 3"),
        ((2, 2), "[a,a,a,a,a]", "expected 4 elements for [2, 2], got 5"),
        ((2, 2), "[]", "expected 4 elements for [2, 2], got 0"),
        ((2, 2), "[[],[]]", "expected 4 elements for [2, 2], got 0"),
        ((2, 2), "[[a,a],[a]]", "expected lists of equal length"),
        ((1, 2), "[[a],[a,a]]", "expected lists of equal length"),
        ((2, 2), "[[a,a],[a,a],[]]", "expected lists of equal length"),
        ((1, 1, 2), "[[[a],[a]],[[a]]]", "expected lists of equal length"),
        ((4, 1), "[[a,a],[a,a]]", "expected data of shape [4, 1], got [2, 2]"),
        ((2, 2), "[[a,a],a]", "expected array, got"),
        ((2, 2), "[[[a,a],[a,a]]]", "got array"),
        ((4,), "[[a,a],[a,a]]", "got array"),
        ((1, 2, 2), "[[a,a],[a,a]]", "expected array, got"),
        ((2, 2), "a", "expected array, got"),
        ((2, 2), "{}", "expected array, got object"),
        ((2, 2), "null", "expected array, got null"),
    ],
)
def test_data_of_another_shape_is_refused(datatype: str, shape: tuple[int, ...], form: str, said: str) -> None:
    """The elements must be as many as the shape says, and nested alike or not at all."""
    data = form.replace("a", json.dumps(EXAMPLES[datatype][0])).encode()
    with pytest.raises(InvalidInput, match=r"^input 'x': ") as refused:
        from_json(tensor(datatype, *[-1] * len(shape)), shape, raw(data))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("datatype", "rows", "shape"), [("FP32", [[1, 2], [3, 4], [5, 6]], (3, 2)), ("BYTES", [["a", "b"]], (1, 2))]
)
def test_rows_make_the_shape(datatype: str, rows: Any, shape: tuple[int, ...]) -> None:
    """Rows need no shape beside them."""
    assert from_rows(tensor(datatype, -1, 2), raw(rows)).shape == shape


@pytest.mark.parametrize("rows", [[], [[]], [[1]], [[1, 2], [3]], [1, 2], [[1, 2, 3]], [[[1, 2]]], 1, {"a": 1}, None])
def test_rows_of_another_shape_are_refused(rows: Any) -> None:
    """Every row has the shape that the model wants."""
    with pytest.raises(InvalidInput, match=r"^input 'x': "):
        from_rows(tensor("FP32", -1, 2), raw(rows))


@pytest.mark.parametrize("datatype", sorted(DATATYPES.keys() - {"BYTES"}))
@pytest.mark.parametrize("change", [-1, 1])
def test_binary_of_another_size_is_refused(datatype: str, change: int) -> None:
    """One byte too few or too many is refused."""
    size = 4 * DATATYPES[datatype].dtype.itemsize
    with pytest.raises(InvalidInput, match=rf"^input 'x': expected {size} bytes for \[2, 2\], got {size + change}$"):
        from_binary(tensor(datatype, -1, 2), (2, 2), memoryview(bytes(size + change)))


def test_binary_booleans_are_0_or_1() -> None:
    """A byte of 2 is no truth value, and would be undefined behaviour in the runtime."""
    with pytest.raises(InvalidInput, match=r"^input 'x': expected BOOL bytes of 0 or 1, got 2$"):
        from_binary(tensor("BOOL", -1), (3,), memoryview(b"\x00\x01\x02"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"", "expected 2 elements, .* got 0", id="nothing"),
        pytest.param(b"\x01\0\0\0a", "expected 2 elements, .* got 1", id="one element"),
        pytest.param(b"\x01\0\0\0a" * 3, "expected 2 elements, .* got 3", id="three elements"),
        pytest.param(b"\x01\0\0\0a\x01\0\0", "end at byte 5", id="a cut length"),
        pytest.param(b"\x01\0\0\0a\x02\0\0\0b", "end at byte 11", id="a cut element"),
        pytest.param(b"\x01\0\0\0a\xff\xff\xff\xffb", "end at byte", id="a length of 4 GiB"),
        pytest.param(b"\x01\0\0\0a\x01\0\0\0bc", "end at byte 10", id="a byte too many"),
        pytest.param(
            struct.pack("<I1sI1s", 1, b"a", 1, b"\xff"), "expected UTF-8 text, got invalid start byte", id="no UTF-8"
        ),
        pytest.param(b"\x01\0\0\0a\x03\0\0\0\xed\xa0\x80", "expected UTF-8 text", id="a surrogate"),
    ],
)
def test_malformed_bytes_are_refused(data: bytes, said: str) -> None:
    """BYTES elements fill the data exactly, each after its length, and are UTF-8 text."""
    with pytest.raises(InvalidInput, match=rf"^input 'x': .*{said}"):
        from_binary(tensor("BYTES", -1), (2,), memoryview(data))


def test_floats_that_are_not_finite_become_null() -> None:
    """JSON has no NaN and no infinity."""
    elements = to_json("y", np.array([np.nan, np.inf, -np.inf, 1], np.float32))
    assert msgspec.json.encode(elements) == b"[null,null,null,1.0]"


def test_half_floats_do_not_leave_as_json() -> None:
    """An FP16 output is to be asked for as binary data."""
    with pytest.raises(InvalidInput, match=r"^output 'y': FP16 has no form in JSON"):
        to_json("y", np.zeros(1, np.float16))


@pytest.mark.parametrize(
    ("spec", "datatype", "shape"),
    [
        (tensor("FP32", -1, 3), "FP32", (1, 3)),
        (tensor("FP32", -1, 3), "FP32", (99, 3)),
        (tensor("FP32", 2, 3), "FP32", (2, 3)),
        (tensor("BYTES"), "BYTES", ()),
    ],
)
def test_tensors_that_fit(spec: Any, datatype: str, shape: tuple[int, ...]) -> None:
    """A variable dimension takes any size from 1, a fixed one its own."""
    check_tensor(spec, datatype, shape)


@pytest.mark.parametrize(
    ("datatype", "shape", "said"),
    [
        ("FP64", (1, 3), "expected datatype FP32, got FP64"),
        ("float", (1, 3), "expected datatype FP32, got float"),
        ("FP32", (1, 2), "expected shape [-1, 3], got [1, 2]"),
        ("FP32", (0, 3), "expected shape [-1, 3], got [0, 3]"),
        ("FP32", (1, 3, 1), "expected shape [-1, 3], got [1, 3, 1]"),
        ("FP32", (3,), "expected shape [-1, 3], got [3]"),
        ("FP32", (), "expected shape [-1, 3], got []"),
    ],
)
def test_tensors_that_do_not_fit(datatype: str, shape: tuple[int, ...], said: str) -> None:
    """The message names the input, what was expected and what came."""
    with pytest.raises(InvalidInput) as refused:
        check_tensor(tensor("FP32", -1, 3), datatype, shape)
    assert str(refused.value) == f"input 'x': {said}"
