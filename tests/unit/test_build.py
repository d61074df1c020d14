"""`tiercel build`, from the recipe's file to the repository, or to the reason why not."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from model_zoo import FLOAT
from onnx import helper
from recipes import FEATURES, OUTLIER, RECIPE, labels, network, rows, write_recipe
from signing import private_pem, public_pem

from command_line.main import main
from inference_core.errors import PackageRefused
from inference_core.manifest import TensorSpec, read_package
from inference_core.model import load_model
from model_tools.artifact import Artifact, Feed, Pass
from model_tools.build import MAX_COLUMNS, build, statistics
from model_tools.publish import Built
from model_tools.recipe import read_recipe
from model_tools.sources import Exported, OnnxSource

STATIC = '[[passes]]\npass = "static-int8"\n'
GATE = "[gate]\nmin_agreement = 95\nmin_speedup = 0.01\n"


def take(sessions: Any, feed: Any, rounds: int) -> dict[str, float]:
    """An INT8 model that is twice as fast, on whatever machine the test runs."""
    return {"export": 2.0, "final": 1.0}


def take_longer(sessions: Any, feed: Any, rounds: int) -> dict[str, float]:
    return {"export": 1.0, "final": 1.25}


def make(path: Path, measure: Any = take) -> Built:
    [built] = build(read_recipe(path), path.parent, measure)
    return built


def test_a_recipe_becomes_a_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It loads as the server loads it, and its manifest says how it came about and what it was good for."""
    path = write_recipe(tmp_path, STATIC + GATE + '[origin]\ndata = "made up"\n')
    assert main(["build", str(path), "--models", str(tmp_path / "models")]) is None
    package = read_package(tmp_path / "models" / "blobs" / "1", 1 << 20)
    load_model(package, 1)
    manifest = package.manifest
    assert manifest.inputs == (TensorSpec("x", "FP32", (-1, FEATURES)),)
    assert manifest.outputs == (TensorSpec("p", "FP32", (-1, 4)),)
    assert [step.name for step in manifest.lineage] == ["source", "static-int8"]
    assert manifest.lineage[-1].model == manifest.model
    assert manifest.lineage[0].options == {"kind": "onnx", "from": "blobs.onnx"}
    assert manifest.gate is not None
    assert manifest.gate.rows == 200
    assert all(check.holds for check in manifest.gate.checks)
    assert manifest.statistics["x"].rows == 64
    assert manifest.statistics["x"].maximum[-1] == 0
    assert {"python", "opset", "onnx", "onnxruntime", "numpy"} <= manifest.built.keys()
    assert manifest.source == {"data": "made up"}
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"published {tmp_path}/models/blobs/1  sha256:{package.digest}"
    assert any(line.startswith("agreement with the export") and "at least 95" in line for line in said)


def test_a_package_is_signed_on_request(tmp_path: Path) -> None:
    """A strict server takes it; a key that is none is refused before anything is built."""
    private = Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(private_pem(private))
    (tmp_path / "keys.pem").write_bytes(public_pem(private))
    arguments = ["build", str(write_recipe(tmp_path, GATE)), "--models", str(tmp_path / "models"), "--key"]
    assert main([*arguments, str(tmp_path / "keys.pem")]) is not None
    assert not (tmp_path / "models").exists()
    assert main([*arguments, str(tmp_path / "key.pem")]) is None
    read_package(tmp_path / "models" / "blobs" / "1", 1 << 20, str(tmp_path / "keys.pem"))


def test_building_again_keeps_the_package(tmp_path: Path) -> None:
    """The same recipe comes to the same model; only measurements differ."""
    path = write_recipe(tmp_path, STATIC + GATE)
    arguments = ["build", str(path), "--models", str(tmp_path / "models")]
    assert main(arguments) is None
    first = read_package(tmp_path / "models" / "blobs" / "1", 1 << 20)
    assert main(arguments) is None
    assert read_package(tmp_path / "models" / "blobs" / "1", 1 << 20) == first
    write_recipe(tmp_path, GATE)
    assert main(arguments) == "tiercel: blobs/1 is not published: blobs/1: exists already, and with other content"
    assert main([*arguments, "--replace"]) is None
    assert read_package(tmp_path / "models" / "blobs" / "1", 1 << 20).digest != first.digest


class BrokenSource(OnnxSource, frozen=True, tag="broken"):
    """A source whose exporter gets one thing wrong."""

    def export(self, folder: Path, rows: Feed) -> Exported:
        right = super().export(folder, rows)
        return right._replace(answer=lambda feed: {"p": right.answer(feed)["p"] + np.float32(0.001)})


def test_a_broken_export_is_refused(tmp_path: Path) -> None:
    """Before any pass is tried."""
    recipe = read_recipe(write_recipe(tmp_path, STATIC + GATE))
    broken = msgspec.structs.replace(recipe, source=BrokenSource("blobs.onnx"))
    with pytest.raises(
        PackageRefused, match=r"^distance from the source, batch 1: expected at most 0\.0001, got 0\.001.*; distance"
    ):
        build(broken, tmp_path, take)


def test_an_over_quantised_model_is_refused_and_nothing_is_published(tmp_path: Path) -> None:
    """With the figures and their budgets, in one line."""
    gate = "[gate]\nmin_agreement = 95\nmax_accuracy_loss = 1\n"
    path = write_recipe(tmp_path, STATIC + "per_channel = false\n" + gate, network(outlier=OUTLIER))
    said = str(main(["build", str(path), "--models", str(tmp_path / "models")]))
    assert said.startswith("tiercel: blobs/1 is not published: agreement with the export: expected at least 95, got ")
    assert "; accuracy loss: expected at most 1, got " in said
    assert not (tmp_path / "models").exists()


def test_int8_that_is_slower_is_refused(tmp_path: Path) -> None:
    """Though the recipe says nothing of speed: it is what INT8 is for. Who wants it for its size says so."""
    path = write_recipe(tmp_path, STATIC + "[gate]\nmin_agreement = 95\n")
    make(path)
    with pytest.raises(PackageRefused, match=r"^speed-up over the export: expected at least 1, got 0\.8$"):
        make(path, take_longer)
    make(write_recipe(tmp_path, STATIC + "[gate]\nmin_agreement = 95\nmin_speedup = 0.5\n"), take_longer)
    make(
        write_recipe(tmp_path, '[[passes]]\npass = "prune"\nsparsity = 0.1\n[gate]\nmin_agreement = 95\n'), take_longer
    )


def test_preprocessing_is_held_to_the_source(tmp_path: Path) -> None:
    """The export is judged by rows as clients send them, the source by what preprocessing makes of those."""
    fold = '[[passes]]\npass = "fold-preprocessing"\nmean = [-1.0]\nscale = [2.0]\n'
    manifest, _ = make(write_recipe(tmp_path, fold + STATIC + GATE))
    assert [step.name for step in manifest.lineage] == ["source", "fold-preprocessing", "static-int8"]
    assert manifest.gate is not None
    assert manifest.gate.checks[0].figure < 1e-6


def test_a_table_has_statistics_for_each_column() -> None:
    """Up to a bound; what is not finite is passed over."""
    found = statistics(np.array([[1, np.nan], [3, np.inf]], np.float32))
    assert (found.rows, found.mean, found.deviation) == (2, (2, 0), (1, 0))
    assert (found.minimum, found.maximum) == ((1, 0), (3, 0))
    assert len(statistics(np.zeros((2, MAX_COLUMNS))).mean) == MAX_COLUMNS
    assert len(statistics(np.zeros((2, MAX_COLUMNS + 1))).mean) == 1
    assert statistics(np.array([[[1.0, 2.0]]])).mean == (1.5,)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('output = "p"', 'output = "q"', r"output: expected one of \['p'\], got 'q'"),
        ("blobs.onnx", "nowhere.onnx", "nowhere.onnx: expected a file in .*: No such file or directory"),
        ("blobs.onnx", "recipe.toml", "recipe.toml: expected an ONNX model: "),
        ("blobs.onnx", "nowhere:model", "nowhere:model: expected a module in .* or an installed one: No module"),
        ("blobs.onnx", "msgspec:model", "msgspec:model: expected a function of that name in msgspec, found none"),
        ("held_out.npz", "nowhere.npz", r"nowhere.npz: expected a \.npz file in .*No such file"),
        ("held_out.npz", "recipe.toml", r"recipe.toml: expected a \.npz file in .*"),
        ("held_out.npz", "other.npz", r"held_out: expected an array for each of the inputs \['x'\], got \['y'\]"),
        ("held_out.npz", "uneven.npz", "uneven.npz: expected an array for each input, and as many rows in each, got "),
        ("held_out.npz", "empty.npz", "empty.npz: expected an array for each input, and as many rows in each, got {}"),
    ],
)
def test_what_a_recipe_names_must_be_there(tmp_path: Path, old: str, new: str, said: str) -> None:
    """And be what it should be."""
    path = write_recipe(tmp_path, GATE, recipe=RECIPE.replace(old, new))
    np.savez(tmp_path / "other.npz", y=rows(8, seed=0))
    np.savez(tmp_path / "uneven.npz", x=rows(8, seed=0), labels=labels(rows(7, seed=0)))
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(PackageRefused, match=f"^{said}"):
        make(path)


def test_a_function_beside_the_recipe_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the model, for rows, for labels."""
    monkeypatch.delitem(sys.modules, "own_blobs", raising=False)
    (tmp_path / "own_blobs.py").write_text(
        "from recipes import labels, network, rows\n\n\n"
        "def model():\n    return network()\n\n\n"
        "def names():\n    return ['a', 'b', 'c', 'd']\n\n\n"
        "def calibration():\n    return {'x': rows(64, seed=0)}\n\n\n"
        "def held_out():\n    return {'x': rows(20, seed=1), 'labels': labels(rows(20, seed=1))}\n"
    )
    text = RECIPE.replace("blobs.onnx", "own_blobs:model")
    text = text.replace("calibration.npz", "own_blobs:calibration").replace("held_out.npz", "own_blobs:held_out")
    text = text.replace('output = "p"', 'output = "p"\nlabels = "own_blobs:names"')
    manifest, _ = make(write_recipe(tmp_path, "[gate]\nmin_accuracy = 99\n", recipe=text))
    assert manifest.gate is not None
    assert manifest.gate.rows == 20
    assert manifest.labels == ("a", "b", "c", "d")


def test_an_output_that_is_no_tensor_of_rows_is_refused(tmp_path: Path) -> None:
    """As the server would refuse it: the package is tried before it is published."""
    model = network()
    model.graph.node.append(helper.make_node("ReduceSum", ["p"], ["total"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("total", FLOAT, []))
    with pytest.raises(PackageRefused, match="total"):
        make(write_recipe(tmp_path, GATE, model))


class FailingPass(Pass, frozen=True, tag="failing"):
    """Trips over something, as a library may."""

    def apply(self, artifact: Artifact) -> Artifact:
        raise KeyError("a\nname")


def test_a_pass_that_fails_is_named(tmp_path: Path) -> None:
    """With what the library said, in one line."""
    recipe = read_recipe(write_recipe(tmp_path, GATE))
    with pytest.raises(PackageRefused, match=r"^failing: fails on this model: 'a\\nname'$"):
        build(msgspec.structs.replace(recipe, passes=(FailingPass(),)), tmp_path, take)


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the way to get it."""
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    path = write_recipe(tmp_path, GATE, recipe=RECIPE.replace('kind = "onnx"', 'kind = "scikit-learn"'))
    said = str(main(["build", str(path), "--models", str(tmp_path / "models")]))
    assert said.startswith("tiercel: ")
    assert said.endswith(f"; `make build RECIPE={path}` has what recipes need")


def test_a_recipe_that_does_not_fit_is_explained(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, STATIC)
    assert str(main(["build", str(path)])).startswith(f"tiercel: {path}:1: gate: expected max_accuracy_loss, ")
