"""Static INT8 quantisation with ONNX Runtime: weights per channel, activations from what calibration saw."""

import contextlib
import io
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from model_tools.artifact import Feed
from model_tools.export import to_bytes
from model_tools.graph import name_nodes

Method = Literal["MinMax", "Entropy", "Percentile"]


def quantise(
    model: bytes,
    samples: Iterable[Feed],
    *,
    leave: Sequence[str] = (),
    leave_nodes: Sequence[str] = (),
    only_nodes: Sequence[str] = (),
    method: Method = "MinMax",
    per_channel: bool = True,
    options: dict[str, Any] | None = None,
    cache: Path | None = None,
) -> bytes:
    """The model with QuantizeLinear/DequantizeLinear pairs around its operators, calibrated on `samples`.

    Activations are asymmetric UINT8, so that the quantisation itself does the clipping of ReLU and ReLU6; weights are
    symmetric INT8; by default ranges are the smallest and the largest value seen. `leave` names the operator types
    that stay in floating point and `leave_nodes` the nodes, `only_nodes` the nodes that alone do not; `options` are the
    `extra_options` of `onnxruntime.quantization.quantize_static`. `cache` keeps what calibration saw in a file: the
    same model is then quantised again without another look at the samples.

    NOTE: on x86-64 without VNNI, ONNX Runtime's fast kernels for UINT8 x INT8 saturate at 16 bits and give other
    answers, unless the session sets `session.x64quantprecision` to 1. See models/README.md.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    source = onnx.load_from_string(model)
    name_nodes(source.graph)
    left = [node.name for node in source.graph.node if node.op_type in leave or node.name in leave_nodes]
    add_pre_process_metadata(source)  # else the quantiser recommends what exporters or the pass `optimise` have done
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "int8.onnx"  # the quantiser writes to a path only
        quantize_static(
            source,
            path,
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
            nodes_to_quantize=list(only_nodes),
            nodes_to_exclude=left,
            extra_options=options or {},
            calibration_cache_path=cache,
        )
        return to_bytes(onnx.load(path))


class _Reader:
    """What the quantiser calls a CalibrationDataReader: an iterator with names of its own."""

    def __init__(self, samples: Iterable[Feed]) -> None:
        self._samples: Iterator[Feed] = iter(samples)

    def get_next(self) -> Feed | None:
        return next(self._samples, None)
