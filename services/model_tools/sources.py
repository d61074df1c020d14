"""Where a model comes from: its ONNX form, and what its own framework answers, to which that form is held."""

import io
import pickle
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from inference_core.errors import PackageRefused
from model_tools.artifact import Feed, slice_rows
from model_tools.export import OPSET, export_torch, export_torchscript, to_bytes
from model_tools.objects import call, is_function, read_file
from model_tools.publish import versions
from model_tools.validate import Array, in_one_line, run_all

REFERENCE_ROWS = 32
TENSORFLOW_PYTHON = ".venv-tensorflow/bin/python"


class Exported(NamedTuple):
    """`answer` is what the framework itself says to rows, by name of output; `tools` are versions of distributions.

    `module` is PyTorch's, if it is a model of that.
    """

    model: bytes
    answer: Callable[[Feed], dict[str, Array]]
    tools: Mapping[str, str]
    module: Any = None


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """The `[source]` of a recipe; `origin` is a file beside it, or `module:function`."""

    origin: str = msgspec.field(name="from")


class OnnxSource(Source, frozen=True, tag="onnx"):
    """A `.onnx` file without external data, or a function that returns a `ModelProto` or its bytes."""

    def export(self, folder: Path, rows: Feed) -> Exported:
        """NOTE: its own reference, in ONNX Runtime without optimisations: what they get wrong can be seen."""
        import onnx
        import onnxruntime as ort

        found = call(self.origin, folder) if is_function(self.origin) else read_file(self.origin, folder)
        try:
            model = onnx.load_from_string(found) if isinstance(found, bytes) else found
            options = ort.SessionOptions()
            options.log_severity_level = 4
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            content = to_bytes(model)
            session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # whatever the two libraries trip over in a damaged file
            raise PackageRefused(f"{self.origin}: expected an ONNX model: {in_one_line(error)}") from None
        names = [output.name for output in session.get_outputs()]
        return Exported(content, lambda feed: run_all(session, feed, names, REFERENCE_ROWS), versions(("onnx",)))


class ScikitLearnSource(Source, frozen=True, tag="scikit-learn"):
    """A pickled estimator or pipeline, or a function that returns a fitted one, converted by skl2onnx."""

    def export(self, folder: Path, rows: Feed) -> Exported:
        from skl2onnx import to_onnx

        if is_function(self.origin):
            estimator = call(self.origin, folder)
        else:
            estimator = pickle.loads(read_file(self.origin, folder))  # noqa: S301  # see recipe.py
        [(name, array)] = rows.items()
        classifies = hasattr(estimator, "predict_proba")
        model = to_onnx(
            estimator,
            initial_types=[(name, _scikit_learn_type(array))],
            options={"zipmap": False} if classifies else None,
            target_opset=OPSET,
        )
        names = [output.name for output in model.graph.output]
        methods = [estimator.predict, estimator.predict_proba] if classifies else [estimator.predict]

        def answer(feed: Feed) -> dict[str, Array]:
            answers = [np.asarray(method(feed[name])) for method in methods]
            # skl2onnx gives a regressor's numbers a second dimension.
            shaped = answers if classifies else [answers[0].reshape(len(feed[name]), -1)]
            return dict(zip(names, shaped, strict=True))

        return Exported(to_bytes(model), answer, versions(("scikit-learn", "skl2onnx", "onnx")))


class TorchSource(Source, frozen=True, tag="pytorch"):
    """A `torch.export` file (`.pt2`), a TorchScript file (any other), or a function that returns a module."""

    # Names for what the module returns, in order.
    outputs: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]

    def export(self, folder: Path, rows: Feed) -> Exported:
        """torch.export takes a batch of 1 for a constant, so two rows are its example."""
        import torch

        names = {"input_names": list(rows), "output_names": list(self.outputs)}
        example = tuple(torch.from_numpy(array) for array in slice_rows(rows, 0, 2).values())
        module, exported, exporter = self._load(folder)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the exporters about themselves
                model = exporter(exported, example, **names)
        except Exception as error:  # each stage of the exporters has its own
            reason = in_one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
            raise PackageRefused(f"{self.origin}: PyTorch cannot export it: {reason}") from error
        tools = versions(("torch", "onnxscript", "onnx"))
        return Exported(model, lambda feed: _answer_of_torch(module, feed, self.outputs), tools, module)

    def _load(self, folder: Path) -> tuple[Any, Any, Callable[..., bytes]]:
        """What can be called, what can be exported, and by what."""
        import torch

        if is_function(self.origin):
            module = call(self.origin, folder).eval()
            return module, module, export_torch
        content = io.BytesIO(read_file(self.origin, folder))
        try:
            if self.origin.endswith(".pt2"):
                program = torch.export.load(content)
                return program.module(), program, export_torch
            script = torch.jit.load(content).eval()
        except Exception as error:  # whatever the two trip over in a damaged file
            raise PackageRefused(
                f"{self.origin}: expected a .pt2 file of torch.export, or one of TorchScript: {in_one_line(error)}"
            ) from None
        return script, script, export_torchscript


class TensorFlowSource(Source, frozen=True, tag="tensorflow"):
    """The folder of a SavedModel, a `.keras` file or a `.tflite` file, converted by tf2onnx.

    TensorFlow is in an environment of its own, whose `python` is asked (see tensorflow_side.py).
    """

    # Names for what the model returns, in order: of a SavedModel, in that of the names in its signature.
    outputs: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    python: str = TENSORFLOW_PYTHON

    def export(self, folder: Path, rows: Feed) -> Exported:
        import onnx

        if not (folder / self.origin).exists():
            raise PackageRefused(f"{self.origin}: expected a SavedModel, a .keras or a .tflite file in {folder}")
        with tempfile.TemporaryDirectory(prefix="tiercel-") as scratch:
            self._ask_tensorflow(Path(scratch), folder, list(rows))
            model = to_bytes(onnx.load(Path(scratch) / "model.onnx"))
            found = msgspec.json.decode((Path(scratch) / "versions.json").read_bytes(), type=dict[str, str])
        return Exported(model, lambda feed: self._answer(folder, feed), found)

    def _answer(self, folder: Path, feed: Feed) -> dict[str, Array]:
        with tempfile.TemporaryDirectory(prefix="tiercel-") as scratch:
            np.savez(Path(scratch) / "rows.npz", *feed.values())
            self._ask_tensorflow(Path(scratch), folder, list(feed))
            with np.load(Path(scratch) / "answers.npz") as answers:
                return {name: answers[f"arr_{at}"] for at, name in enumerate(self.outputs)}

    def _ask_tensorflow(self, scratch: Path, folder: Path, inputs: list[str]) -> None:
        origin = str((folder / self.origin).resolve())
        task = {"origin": origin, "inputs": inputs, "outputs": self.outputs, "opset": OPSET}
        (scratch / "task.json").write_bytes(msgspec.json.encode(task))
        command = [self.python, str(Path(__file__).with_name("tensorflow_side.py")), str(scratch)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except OSError as error:
            raise PackageRefused(
                f"python: expected one with TensorFlow, got {self.python}: {error.strerror}; "
                "`make .venv-tensorflow` makes one"
            ) from None
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
            raise PackageRefused(f"{self.origin}: TensorFlow cannot export it: {reason[:500]}") from None


AnySource = OnnxSource | ScikitLearnSource | TorchSource | TensorFlowSource


def _scikit_learn_type(array: Array) -> Any:
    from skl2onnx.common.data_types import guess_data_type

    [(_, kind)] = guess_data_type(array)
    return type(kind)([None, *array.shape[1:]])  # None is the batch


def _answer_of_torch(module: Any, feed: Feed, names: tuple[str, ...]) -> dict[str, Array]:
    import torch

    with torch.no_grad():
        answer = module(*(torch.from_numpy(array) for array in feed.values()))
    answers = answer if isinstance(answer, tuple | list) else (answer,)
    return {name: tensor.detach().numpy() for name, tensor in zip(names, answers, strict=True)}
