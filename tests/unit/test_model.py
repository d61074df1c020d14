import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_zoo import DATATYPES as KINDS
from model_zoo import Zoo, edit_manifest

from inference_core.errors import DeadlineExceeded, InferenceFailed, InvalidInput, PackageRefused
from inference_core.manifest import read_package
from inference_core.model import Model, RunOptions, load_model
from inference_core.runtimes.onnx import session_options
from inference_core.tensors import DATATYPES

MAX_BYTES = 1 << 20


def load(folder: Path) -> Model:
    return load_model(read_package(folder, MAX_BYTES), intra_op_threads=1)


def refusal(folder: Path) -> str:
    with pytest.raises(PackageRefused) as refused:
        load(folder)
    return str(refused.value)


def test_a_model_answers(zoo: Zoo) -> None:
    """A loaded model computes what its graph says."""
    [y] = load(zoo.scale(factor=3)).run({"x": np.array([[1, 2, 3]], np.float32)}, None, RunOptions())
    assert y.tolist() == [[3, 6, 9]]


@pytest.mark.parametrize("spinning", [False, True])
def test_threads_spin_if_they_are_told_to(spinning: bool, zoo: Zoo) -> None:
    entry = session_options(2, spinning).get_session_config_entry("session.intra_op.allow_spinning")
    assert entry == str(int(spinning))
    model = load_model(read_package(zoo.scale(), MAX_BYTES), intra_op_threads=2, spinning=spinning)
    assert model.run({"x": np.ones((1, 3), np.float32)}, None, RunOptions())[0].tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_datatype_runs(kind: int, zoo: Zoo) -> None:
    """Each datatype of the protocol goes through the runtime and comes back."""
    model = load(zoo.copy("copy", kind))
    dtype = DATATYPES[KINDS[kind]].dtype
    x = np.array([["a", "\N{SNOWMAN}"]], object) if dtype.hasobject else np.array([[0, 1]], dtype)
    [y] = model.run({"x": x}, None, RunOptions())
    np.testing.assert_array_equal(y, x)
    assert y.dtype == dtype


def test_the_models_of_the_tests_cover_every_datatype() -> None:
    """There is no datatype that the test above leaves out."""
    assert set(KINDS.values()) == DATATYPES.keys()


def test_wanted_outputs_come_in_the_wanted_order(zoo: Zoo) -> None:
    """Without names all come, in the manifest's order."""
    model = load(zoo.named())
    feeds = {"x": np.array([[1, 2, 3]], np.float32)}
    assert [y.tolist() for y in model.run(feeds, ["positive", "total"], RunOptions())] == [[True], [6]]
    assert [y.tolist() for y in model.run(feeds, None, RunOptions())] == [[6], [True]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": [("z", "FP32", [-1, 3])]}, "inputs: expected ['z'] as in the manifest, got ['x']"),
        ({"outputs": [("z", "FP32", [-1, 3])]}, "outputs: expected ['z'] as in the manifest, got ['y']"),
        (
            {"inputs": [("x", "FP32", [-1, 3]), ("z", "FP32", [-1, 3])]},
            "inputs: expected ['x', 'z'] as in the manifest, got ['x']",
        ),
        ({"inputs": [("x", "FP64", [-1, 3])]}, "input 'x': expected FP64 as in the manifest, got FP32"),
        ({"inputs": [("x", "BF16", [-1, 3])]}, "input 'x': expected BF16 as in the manifest, got FP32"),
        ({"outputs": [("y", "INT64", [-1, 3])]}, "output 'y': expected INT64 as in the manifest, got FP32"),
        ({"inputs": [("x", "FP32", [-1, 4])]}, "input 'x': expected shape [-1, 4] as in the manifest, got [-1, 3]"),
        ({"inputs": [("x", "FP32", [-1, -1])]}, "input 'x': expected shape [-1, -1] as in the manifest, got [-1, 3]"),
        ({"outputs": [("y", "FP32", [-1])]}, "output 'y': expected shape [-1] as in the manifest, got [-1, 3]"),
    ],
)
def test_a_signature_that_differs_from_the_manifest_is_refused(changes: dict[str, Any], said: str, zoo: Zoo) -> None:
    """The reason names the tensor, what the manifest says and what the graph has."""
    folder = zoo.scale()
    keys = ("name", "datatype", "shape")
    edit_manifest(
        folder, **{kind: [dict(zip(keys, spec, strict=True)) for spec in specs] for kind, specs in changes.items()}
    )
    assert refusal(folder) == said


def test_garbage_is_refused(zoo: Zoo) -> None:
    """Bytes that are no graph are refused in one line."""
    said = refusal(zoo.garbage("garbage"))
    assert said.startswith("model.onnx: ONNX Runtime refuses it: ")
    assert "\n" not in said


@pytest.mark.parametrize("location", ["weights.bin", "{folder}/weights.bin", "../{name}/weights.bin"])
def test_weights_in_another_file_are_refused(
    location: str, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what was hashed is loaded, even if the other file is there, in the folder where the process runs."""
    (tmp_path / "weights.bin").write_bytes(np.float32(2).tobytes())
    monkeypatch.chdir(tmp_path)
    folder = zoo.external(location.format(folder=tmp_path, name=tmp_path.name))
    (folder / "weights.bin").write_bytes(np.float32(2).tobytes())
    assert "External data path" in refusal(folder)


def test_an_answer_of_another_shape_is_refused(zoo: Zoo) -> None:
    """A model of rows must answer one row with one row."""
    assert refusal(zoo.positive()) == "output 'y': expected shape [1], got [0]"


def test_a_model_that_fails_on_zeros_is_refused(zoo: Zoo) -> None:
    """The warm-up finds what the signature does not show."""
    assert refusal(zoo.beyond()).startswith(
        "model.onnx: fails on a warm-up input of zeros: model beyond: refuses these values: "
    )


def test_values_that_the_runtime_refuses_are_the_callers_fault(zoo: Zoo) -> None:
    """An index beyond a table is well-formed and wrong."""
    with pytest.raises(InvalidInput, match=r"^model gather: refuses these values: "):
        load(zoo.gather()).run({"i": np.array([3])}, None, RunOptions())


def test_a_failure_of_the_runtime_is_ours(zoo: Zoo) -> None:
    """More memory than there is, asked for by accepted input."""
    with pytest.raises(InferenceFailed, match=r"^model count: "):
        load(zoo.count()).run({"n": np.array([1 << 60])}, None, RunOptions())


def test_a_request_for_too_much_memory_spoils_nothing(zoo: Zoo) -> None:
    """The next request has as much as ever."""
    model = load(zoo.count())
    with pytest.raises(InferenceFailed):
        model.run({"n": np.array([1 << 60])}, None, RunOptions())
    [y] = model.run({"n": np.array([1 << 20])}, None, RunOptions())
    assert y.shape == (1 << 20,)


def test_an_endless_inference_stops_when_told(zoo: Zoo) -> None:
    """`terminate`, set by another thread, ends the run as a deadline exceeded."""
    model, options = load(zoo.endless()), RunOptions()
    timer = threading.Timer(0.05, lambda: setattr(options, "terminate", True))
    timer.start()
    with pytest.raises(DeadlineExceeded, match=r"^model endless: stopped at the deadline$"):
        model.run({"x": np.array([1], np.float32)}, None, options)
    timer.join()


@pytest.mark.parametrize("before", [{}, {"ORT_DISABLE_TELEMETRY": "0"}])
def test_the_runtime_reports_nothing(before: dict[str, str]) -> None:
    """ONNX Runtime's telemetry is off before it is imported, whatever the environment says, and has no thread."""
    program = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'onnxruntime':\n"
        "            print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import inference_core.model\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | before
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == ["1", "1"]
