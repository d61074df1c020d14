"""Static INT8 quantisation with ONNX Runtime: weights per channel, activations from what calibration saw."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from model_tools.export import to_bytes

Feed = dict[str, NDArray[Any]]


def quantise(
    model: bytes, samples: Iterable[Feed], *, leave: Sequence[str] = (), options: dict[str, Any] | None = None
) -> bytes:
    """The model with QuantizeLinear/DequantizeLinear pairs around its operators, calibrated on `samples`.

    Activations are asymmetric UINT8, so that the quantisation itself does the clipping of ReLU and ReLU6; weights are
    symmetric INT8 per channel; ranges are the smallest and the largest value seen. `leave` names the operator types
    that stay in floating point, `options` the `extra_options` of `onnxruntime.quantization.quantize_static`.

    NOTE: on x86-64 without VNNI, ONNX Runtime's fast kernels for UINT8 x INT8 saturate at 16 bits and give other
    answers, unless the session sets `session.x64quantprecision` to 1. See models/README.md.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    source = onnx.load_from_string(model)
    with tempfile.TemporaryDirectory() as folder:  # the quantiser writes to a path only
        path = Path(folder) / "int8.onnx"
        quantize_static(
            source,
            path,
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=[node.name for node in source.graph.node if node.op_type in leave],
            extra_options=options or {},
        )
        return to_bytes(onnx.load(path))


class _Reader:
    """What the quantiser calls a CalibrationDataReader: an iterator with names of its own."""

    def __init__(self, samples: Iterable[Feed]) -> None:
        self._samples: Iterator[Feed] = iter(samples)

    def get_next(self) -> Feed | None:
        return next(self._samples, None)
