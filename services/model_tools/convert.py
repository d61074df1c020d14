"""From a PyTorch module to a file for another runtime than ONNX Runtime; imported only where PyTorch is."""

import contextlib
import io
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from inference_core.errors import PackageRefused
from model_tools.artifact import Feed, slice_rows
from model_tools.validate import Array, in_one_line


class Prepared(torch.nn.Module):  # type: ignore[misc]  # PyTorch is not there when types are checked
    """`module`, fed `(raw - mean) / scale`: the pass `fold-preprocessing`."""

    def __init__(self, module: Any, mean: Array, scale: Array) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, raw: Any) -> Any:
        return self.module((raw.to(torch.float32) - self.mean) / self.scale)


class Named(torch.nn.Module):  # type: ignore[misc]  # as above
    """`module` with names: LiteRT's converter takes those of inputs and outputs from what a call looks like."""

    def __init__(self, module: Any, inputs: list[str], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.module = module
        self.inputs = inputs
        self.outputs = outputs

    def forward(self, **feed: Any) -> dict[str, Any]:
        answer = self.module(*(feed[name] for name in self.inputs))
        return dict(zip(self.outputs, answer if isinstance(answer, tuple | list) else [answer], strict=True))


def to_torchscript(module: Any, rows: Feed, outputs: tuple[str, ...]) -> bytes:
    """What runs for two of the `rows`, traced: a way that depends on values is taken for good."""
    file = io.BytesIO()
    with torch.no_grad():
        traced = torch.jit.trace(module, tuple(_tensors(slice_rows(rows, 0, 2)).values()), check_trace=False)
    torch.jit.save(traced, file)
    return _without_notes(file.getvalue())


def _without_notes(archive: bytes) -> bytes:
    """Without which line of which file each operation came from: the same model on every machine."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith((".debug_pkl", "/.data/serialization_id")):
                new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry))
    return file.getvalue()


def to_litert(module: Any, rows: Feed, outputs: tuple[str, ...]) -> bytes:
    """For one row at a time: a batch that stays variable, the converter (0.10) cannot do."""
    import litert_torch

    named = Named(module, list(rows), outputs).eval()
    # Without enable_x64, 64-bit inputs and outputs would silently become 32-bit ones.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # it says each step
        converted = litert_torch.convert(named, sample_kwargs=_tensors(slice_rows(rows, 0, 1)), enable_x64=True)
        path = Path(folder) / "model.tflite"
        converted.export(str(path))
        return path.read_bytes()


class Converter(NamedTuple):
    convert: Callable[[Any, Feed, tuple[str, ...]], bytes]
    # Names of distributions.
    tools: tuple[str, ...]


CONVERTERS = {
    "torchscript": Converter(to_torchscript, ("torch",)),
    "litert": Converter(to_litert, ("torch", "litert-torch", "ai-edge-litert")),
}


def convert(runtime: str, module: Any, rows: Feed, outputs: tuple[str, ...]) -> bytes:
    """The file of `module` for `runtime`; PackageRefused with the converter's reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about TorchScript as such, and of converters about themselves
            return CONVERTERS[runtime].convert(module, rows, outputs)
    except ImportError:
        raise
    except Exception as error:  # each stage of the converters has its own
        raise PackageRefused(f"PyTorch cannot make it: {in_one_line(error)}") from error


def _tensors(rows: Feed) -> dict[str, Any]:
    return {name: torch.tensor(array) for name, array in rows.items()}
