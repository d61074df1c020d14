"""The Open Inference Protocol's inference request and response, with the binary tensor extension.

A request is decoded straight into numpy arrays that fit the model's signature; whatever does not fit is
InvalidInput that names the tensor, what was expected and what came.
"""

from typing import Annotated, Any, TypeVar

import msgspec

from inference_core import tensors
from inference_core.bodies import decode_json
from inference_core.errors import InvalidInput, UnsupportedFeature
from inference_core.manifest import Manifest, TensorSpec
from inference_core.tensors import Tensor

T = TypeVar("T")

Parameters = dict[str, str | int | float | bool]
Size = Annotated[int, msgspec.Meta(ge=0)]
NO_PARAMETERS: Parameters = {}
NO_DATA = memoryview(b"")
MAX_TIMEOUT = 2**63 - 1
# Extensions of other servers that change the meaning of a request: refused, rather than ignored.
UNSUPPORTED = ("classification", "shared_memory_region", "sequence_id", "sequence_start", "sequence_end")


class RequestInput(msgspec.Struct):
    name: str
    shape: tuple[Size, ...]
    datatype: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: Parameters = NO_PARAMETERS


class RequestOutput(msgspec.Struct):
    name: str
    parameters: Parameters = NO_PARAMETERS


class InferRequest(msgspec.Struct):
    inputs: Annotated[list[RequestInput], msgspec.Meta(min_length=1)]
    outputs: list[RequestOutput] = []
    id: str | msgspec.UnsetType = msgspec.UNSET
    parameters: Parameters = NO_PARAMETERS


class ResponseOutput(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET
    parameters: Parameters | msgspec.UnsetType = msgspec.UNSET


class InferResponse(msgspec.Struct):
    model_name: str
    model_version: str
    outputs: list[ResponseOutput]
    id: str | msgspec.UnsetType = msgspec.UNSET


class Call(msgspec.Struct):
    """One inference, ready to run: `feeds` by input name; `outputs` pairs each wanted output with "as binary?"."""

    feeds: dict[str, Tensor]
    outputs: list[tuple[TensorSpec, bool]]
    id: str | msgspec.UnsetType = msgspec.UNSET
    # The client's own limit in seconds, from the reserved parameter `timeout` (microseconds).
    timeout: float | None = None


_response = msgspec.json.Encoder()


def decode_request(body: bytes, json_size: int | None, manifest: Manifest) -> Call:
    """The call in `body`, of which the first `json_size` bytes are JSON and the rest raw tensors (None: all JSON).

    0 is the extension's raw request: the whole body is the one input, and all outputs come back binary.
    """
    if json_size == 0:
        return _raw_call(body, manifest)
    if json_size is not None and json_size > len(body):
        raise InvalidInput(f"Inference-Header-Content-Length: expected at most {len(body)}, got {json_size}")
    request = decode_json(memoryview(body)[:json_size] if json_size else body, InferRequest)
    binary = memoryview(body)[json_size:] if json_size else NO_DATA
    return Call(
        _decode_inputs(request.inputs, binary, manifest),
        _wanted_outputs(request, manifest),
        request.id,
        _timeout(request.parameters) if request.parameters else None,
    )


def encode_response(call: Call, manifest: Manifest, arrays: list[Tensor]) -> tuple[bytes, int | None]:
    """The response's body and the size of its JSON part (None: all of it is JSON)."""
    outputs, buffers = [], []
    for (spec, as_binary), array in zip(call.outputs, arrays, strict=True):
        output = ResponseOutput(spec.name, spec.datatype, array.shape)
        if as_binary:
            buffers.append(tensors.to_binary(array))
            output.parameters = {"binary_data_size": len(buffers[-1])}
        else:
            output.data = tensors.to_json(spec.name, array)
        outputs.append(output)
    text = _response.encode(InferResponse(manifest.name, manifest.version, outputs, call.id))
    return (b"".join((text, *buffers)), len(text)) if buffers else (text, None)


def check_rows(manifest: Manifest, rows: int) -> None:
    if not 1 <= rows <= manifest.max_batch_size:
        raise InvalidInput(f"rows: expected 1 to {manifest.max_batch_size} for model {manifest.name}, got {rows}")


def _decode_inputs(inputs: list[RequestInput], binary: memoryview, manifest: Manifest) -> dict[str, Tensor]:
    feeds: dict[str, Tensor] = {}
    for given in inputs:
        spec = _spec(given.name, manifest.inputs, "input")
        if given.name in feeds:
            raise InvalidInput(f"input '{given.name}': expected once, got twice")
        if manifest.max_batch_size and given.shape:
            check_rows(manifest, given.shape[0])
        tensors.check_tensor(spec, given.datatype, given.shape)
        if isinstance(given.data, msgspec.Raw):
            feeds[given.name] = tensors.from_json(spec, given.shape, given.data)
        else:
            size = _binary_size(given, len(binary))
            feeds[given.name] = tensors.from_binary(spec, given.shape, binary[:size])
            binary = binary[size:]
    if len(binary):
        raise InvalidInput(f"body: expected no data after that of the last input, got {len(binary)} bytes")
    _check_complete(feeds, manifest)
    return feeds


def _check_complete(feeds: dict[str, Tensor], manifest: Manifest) -> None:
    if len(feeds) != len(manifest.inputs):
        missing = [spec.name for spec in manifest.inputs if spec.name not in feeds]
        raise InvalidInput(f"inputs: expected {_names(manifest.inputs)}, got no '{missing[0]}'")
    if len(feeds) > 1 and manifest.max_batch_size and len({len(array) for array in feeds.values()}) > 1:
        rows = ", ".join(f"'{name}' {len(array)}" for name, array in feeds.items())
        raise InvalidInput(f"inputs: expected the same number of rows in each, got {rows}")


def _binary_size(given: RequestInput, available: int) -> int:
    size = given.parameters.get("binary_data_size")
    _refuse_unsupported(given.parameters)
    if type(size) is not int or size < 0:
        raise InvalidInput(f"input '{given.name}': expected 'data' or the parameter 'binary_data_size', got neither")
    if size > available:
        raise InvalidInput(f"input '{given.name}': expected {size} bytes of binary data, got {available}")
    return size


def _wanted_outputs(request: InferRequest, manifest: Manifest) -> list[tuple[TensorSpec, bool]]:
    default = _parameter(request.parameters, "binary_data_output", bool, False) if request.parameters else False
    if not request.outputs:
        return [(spec, default) for spec in manifest.outputs]
    wanted = []
    for output in request.outputs:
        _refuse_unsupported(output.parameters)
        as_binary = _parameter(output.parameters, "binary_data", bool, default)
        wanted.append((_spec(output.name, manifest.outputs, "output"), as_binary))
    if len({spec.name for spec, _ in wanted}) < len(wanted):
        raise InvalidInput("outputs: expected each name once, got one twice")
    return wanted


def _raw_call(body: bytes, manifest: Manifest) -> Call:
    """Extension "Binary tensor data", raw request: one input, one row, its single variable dimension filled."""
    if len(manifest.inputs) != 1:
        raise InvalidInput(f"raw request: expected a model with one input, got {_names(manifest.inputs)}")
    spec = manifest.inputs[0]
    batch = 1 if manifest.max_batch_size else 0
    shape = [1] * batch + list(spec.shape[batch:])
    if shape.count(-1) > 1:
        raise InvalidInput(f"raw request: expected at most one variable dimension, got {list(spec.shape)}")
    if spec.datatype == "BYTES":
        shape, body = [1] * len(shape), len(body).to_bytes(4, "little") + body
    elif -1 in shape:
        row = tensors.DATATYPES[spec.datatype].dtype.itemsize
        for size in shape:
            row *= abs(size)
        shape[shape.index(-1)] = len(body) // row
    tensors.check_tensor(spec, spec.datatype, tuple(shape))
    feeds = {spec.name: tensors.from_binary(spec, tuple(shape), memoryview(body))}
    return Call(feeds, [(output, True) for output in manifest.outputs])


def _timeout(parameters: Parameters) -> float | None:
    _refuse_unsupported(parameters)
    reserved = [name for name in parameters if name.startswith("triton_")]
    if reserved:
        raise InvalidInput(f"parameters: expected no name that starts with 'triton_', got '{reserved[0]}'")
    timeout = _parameter(parameters, "timeout", int, 0)
    if not 0 <= timeout <= MAX_TIMEOUT:
        raise InvalidInput(f"parameter 'timeout': expected 0 to {MAX_TIMEOUT} microseconds, got {timeout}")
    return timeout / 1e6 or None


def _parameter(parameters: Parameters, name: str, kind: type[T], default: T) -> T:
    value = parameters.get(name, default)
    if type(value) is not kind:  # not isinstance: true is no number
        raise InvalidInput(f"parameter '{name}': expected {kind.__name__}, got {value!r}")
    return value


def _refuse_unsupported(parameters: Parameters) -> None:
    for name in UNSUPPORTED:
        if parameters.get(name):
            raise UnsupportedFeature(f"parameter '{name}': this extension is not offered; GET /v2 lists those that are")


def _spec(name: str, specs: tuple[TensorSpec, ...], kind: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise InvalidInput(f"{kind} '{name}': expected {_names(specs)}, got an unknown name")


def _names(specs: tuple[TensorSpec, ...]) -> str:
    return " and ".join(f"'{spec.name}'" for spec in specs)
