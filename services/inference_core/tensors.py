"""Tensors between the wire and numpy: the data types of the Open Inference Protocol, as JSON and as raw bytes."""

import functools
import math
import re
import struct
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference_core.errors import InvalidInput, in_plain_words
from inference_core.manifest import TensorSpec

Tensor = NDArray[Any]

NESTED = re.compile(rb"\[\s*\[")


class Datatype(msgspec.Struct, frozen=True):
    name: str
    dtype: np.dtype[Any]
    onnx: str
    # What one element is in JSON; None where JSON has no faithful form.
    json: Any
    # Its format character in `struct`, for the types that most tensors are of.
    packed: str = ""


DATATYPES = {
    datatype.name: datatype
    for datatype in (
        Datatype("BOOL", np.dtype(np.bool_), "tensor(bool)", bool),
        Datatype("UINT8", np.dtype("u1"), "tensor(uint8)", int),
        Datatype("UINT16", np.dtype("<u2"), "tensor(uint16)", int),
        Datatype("UINT32", np.dtype("<u4"), "tensor(uint32)", int),
        Datatype("UINT64", np.dtype("<u8"), "tensor(uint64)", int),
        Datatype("INT8", np.dtype("i1"), "tensor(int8)", int),
        Datatype("INT16", np.dtype("<i2"), "tensor(int16)", int),
        Datatype("INT32", np.dtype("<i4"), "tensor(int32)", int),
        Datatype("INT64", np.dtype("<i8"), "tensor(int64)", int, "q"),
        Datatype("FP16", np.dtype("<f2"), "tensor(float16)", None),
        Datatype("FP32", np.dtype("<f4"), "tensor(float)", float, "f"),
        Datatype("FP64", np.dtype("<f8"), "tensor(double)", float, "d"),
        Datatype("BYTES", np.dtype(object), "tensor(string)", str),
    )
}


def check_tensor(spec: TensorSpec, datatype: str, shape: tuple[int, ...]) -> None:
    """Raise InvalidInput unless a tensor of `datatype` and `shape` can be the input that `spec` describes."""
    if datatype != spec.datatype:
        raise InvalidInput(f"input '{spec.name}': expected datatype {spec.datatype}, got {datatype}")
    if len(shape) == len(spec.shape):
        for expected, got in zip(spec.shape, shape, strict=True):
            if expected != got and (expected != -1 or got < 1):
                break
        else:
            return
    raise InvalidInput(f"input '{spec.name}': expected shape {list(spec.shape)}, got {list(shape)}")


def from_json(spec: TensorSpec, shape: tuple[int, ...], data: msgspec.Raw) -> Tensor:
    """The tensor of `shape` whose elements stand in the JSON array `data`: flat in row-major order, or nested alike."""
    array = _decode(spec, len(shape) if NESTED.match(data) else 1, data)
    if array.size != math.prod(shape):
        raise InvalidInput(
            f"input '{spec.name}': expected {math.prod(shape)} elements for {list(shape)}, got {array.size}"
        )
    if array.ndim > 1 and array.shape != shape:
        raise InvalidInput(f"input '{spec.name}': expected data of shape {list(shape)}, got {list(array.shape)}")
    return array.reshape(shape)


def from_rows(spec: TensorSpec, data: bytes | msgspec.Raw) -> Tensor:
    """The tensor whose rows stand in the JSON array `data`, nested as deep as the tensor has dimensions."""
    array = _decode(spec, len(spec.shape), data)
    check_tensor(spec, spec.datatype, array.shape)
    return array


def from_binary(spec: TensorSpec, shape: tuple[int, ...], data: memoryview) -> Tensor:
    """The tensor whose raw little-endian elements are `data` (extension "Binary tensor data")."""
    if spec.datatype == "BYTES":
        return _from_length_prefixed(spec, shape, data)
    dtype = DATATYPES[spec.datatype].dtype
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise InvalidInput(f"input '{spec.name}': expected {expected} bytes for {list(shape)}, got {len(data)}")
    array = np.frombuffer(data, dtype).reshape(shape)
    if spec.datatype == "BOOL" and (largest := array.view(np.uint8).max()) > 1:
        raise InvalidInput(f"input '{spec.name}': expected BOOL bytes of 0 or 1, got {largest}")
    return array if array.flags.aligned else array.copy()


def to_json(name: str, array: Tensor) -> list[Any]:
    """The elements of `array`, flat and row-major; a float that is not finite becomes null, as JSON has no NaN."""
    if array.dtype.char == "e":  # PERF: np.float16, without making a dtype to compare with
        raise InvalidInput(f"output '{name}': FP16 has no form in JSON: ask for it with binary_data")
    return array.ravel().tolist()


def to_binary(array: Tensor) -> bytes:
    """The raw little-endian elements of `array` (extension "Binary tensor data")."""
    if array.dtype != object:
        return array.tobytes()
    parts = [element.encode() for element in array.ravel().tolist()]
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def _from_length_prefixed(spec: TensorSpec, shape: tuple[int, ...], data: memoryview) -> Tensor:
    elements, offset = [], 0
    while offset + 4 <= len(data):
        start = offset + 4
        offset = start + int.from_bytes(data[offset:start], "little")
        elements.append(data[start:offset])
    if offset != len(data) or len(elements) != math.prod(shape):
        raise InvalidInput(
            f"input '{spec.name}': expected {math.prod(shape)} elements, each after its length in 4 bytes, in "
            f"{len(data)} bytes, got {len(elements)} elements that end at byte {offset}"
        )
    try:
        values = [str(element, "utf-8") for element in elements]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input '{spec.name}': expected UTF-8 text, got {error.reason}") from None
    return np.array(values, object).reshape(shape)


def _decode(spec: TensorSpec, depth: int, data: bytes | msgspec.Raw) -> Tensor:
    datatype = DATATYPES[spec.datatype]
    if datatype.json is None:
        raise InvalidInput(
            f"input '{spec.name}': expected {spec.datatype} as binary data, got JSON, which has no form for it"
        )
    try:
        values = _array_decoder(datatype.json, depth).decode(data)
        if datatype.packed and depth == 1:
            # PERF: a fifth of the time of the general way.
            return np.frombuffer(struct.pack(f"<{len(values)}{datatype.packed}", *values), datatype.dtype)
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused below
            array = np.array(values, datatype.dtype)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"input '{spec.name}': {in_plain_words(error)}") from None
    except (OverflowError, struct.error):
        raise _out_of_range(spec) from None
    except ValueError:
        raise _ragged(spec) from None
    if array.ndim < depth and array.size:  # numpy takes unequal lists for elements, where these are objects
        raise _ragged(spec)
    if datatype.json is float and not np.isfinite(array).all():
        raise _out_of_range(spec)
    return array


def _out_of_range(spec: TensorSpec) -> InvalidInput:
    return InvalidInput(f"input '{spec.name}': expected values of {spec.datatype}, got one out of its range")


def _ragged(spec: TensorSpec) -> InvalidInput:
    return InvalidInput(f"input '{spec.name}': expected lists of equal length, got unequal ones")


@functools.lru_cache(maxsize=64)
def _array_decoder(element: Any, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = element
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)
