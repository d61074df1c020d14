"""Models of other frameworks become ONNX, and are held to what the framework itself says. Run by `make test-models`."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Broken, Network, TwoOutputs
from recipes import BATCH, CLASSES, FEATURES, RECIPE, labels, rows, write_recipe
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from inference_core.errors import PackageRefused
from model_tools.build import build
from model_tools.gate import check_export
from model_tools.publish import Built
from model_tools.recipe import read_recipe
from model_tools.sources import ScikitLearnSource, TorchSource
from model_tools.validate import open_model

ROWS = rows(300, seed=2)


def pickled(folder: Path, estimator: Any) -> ScikitLearnSource:
    (folder / "model.pkl").write_bytes(pickle.dumps(estimator.fit(ROWS, labels(ROWS))))
    return ScikitLearnSource("model.pkl")


def make(folder: Path, kind: str, output: str) -> Built:
    recipe = RECIPE.replace('kind = "onnx"\nfrom = "blobs.onnx"', kind).replace('output = "p"', f'output = "{output}"')
    path = write_recipe(folder, "[gate]\nmin_accuracy = 10\n", recipe=recipe)
    [built] = build(read_recipe(path), folder)
    return built


@pytest.mark.parametrize(
    "estimator",
    [make_pipeline(StandardScaler(), LogisticRegression()), RandomForestClassifier(20, random_state=0)],
    ids=["a pipeline", "a forest"],
)
def test_a_classifier_of_scikit_learn(tmp_path: Path, estimator: Any) -> None:
    """A class and probabilities, as scikit-learn says them, and a package of that."""
    pickled(tmp_path, estimator)
    manifest, _ = make(tmp_path, 'kind = "scikit-learn"\nfrom = "model.pkl"', "probabilities")
    assert [(spec.name, spec.datatype, spec.shape) for spec in manifest.outputs] == [
        ("label", "INT64", (-1,)),
        ("probabilities", "FP32", (-1, CLASSES)),
    ]
    assert {"scikit-learn", "skl2onnx"} <= manifest.built.keys()


def test_a_regressor_of_scikit_learn(tmp_path: Path) -> None:
    """Numbers have a column of their own."""
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(LinearRegression().fit(ROWS, ROWS.sum(axis=1))))
    exported = ScikitLearnSource("model.pkl").export(tmp_path, {"x": ROWS})
    checks = check_export(open_model(exported.model), exported.answer, {"x": ROWS}, BATCH, 1e-4)
    assert all(check.holds for check in checks)


def test_classes_with_names(tmp_path: Path) -> None:
    """Labels that are texts stay so."""
    names = np.array(["red", "green", "blue", "white"])[labels(ROWS)]
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(LogisticRegression().fit(ROWS, names)))
    exported = ScikitLearnSource("model.pkl").export(tmp_path, {"x": ROWS})
    check_export(open_model(exported.model), exported.answer, {"x": ROWS}, BATCH, 1e-4)
    assert set(exported.answer({"x": ROWS})["label"]) <= set(names)


def program(folder: Path, module: torch.nn.Module) -> str:
    batch = torch.export.Dim("batch")
    saved = torch.export.export(module.eval(), (torch.from_numpy(ROWS[:2]),), dynamic_shapes=({0: batch},))
    torch.export.save(saved, folder / "model.pt2")
    return "model.pt2"


def script(folder: Path, module: torch.nn.Module) -> str:
    torch.jit.trace(module.eval(), torch.from_numpy(ROWS[:2])).save(folder / "model.pt")
    return "model.pt"


def function(folder: Path, module: torch.nn.Module) -> str:
    return f"networks:{type(module).__name__}"


@pytest.mark.parametrize("save", [program, script, function])
@pytest.mark.filterwarnings("ignore")
def test_a_network_of_pytorch(tmp_path: Path, save: Callable[[Path, torch.nn.Module], str]) -> None:
    """As a program of torch.export, as TorchScript, and as a module; batches of any size, in all three."""
    origin = save(tmp_path, Network())
    manifest, _ = make(tmp_path, f'kind = "pytorch"\nfrom = "{origin}"\noutputs = ["p"]', "p")
    assert [(spec.name, spec.shape) for spec in (*manifest.inputs, *manifest.outputs)] == [
        ("x", (-1, FEATURES)),
        ("p", (-1, CLASSES)),
    ]
    assert manifest.built["torch"].startswith("2.")


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    """Inputs are called as the rows are, outputs as the recipe says."""
    origin = function(tmp_path, TwoOutputs())
    feed = {"left": ROWS, "right": ROWS[::-1].copy()}
    exported = TorchSource(origin, ("sum", "product")).export(tmp_path, feed)
    checks = check_export(open_model(exported.model), exported.answer, feed, BATCH, 1e-6)
    assert all(check.holds for check in checks)
    assert np.array_equal(exported.answer(feed)["product"], ROWS * ROWS[::-1])


def test_a_broken_export_is_refused(tmp_path: Path) -> None:
    """The exporter is content, and the gate is not."""
    origin = function(tmp_path, Broken())
    with pytest.raises(PackageRefused, match=r"^distance from the source, batch 1: .* at most 0\.0001, got 0\.\d+; "):
        make(tmp_path, f'kind = "pytorch"\nfrom = "{origin}"\noutputs = ["p"]', "p")


def test_what_pytorch_cannot_export_is_refused(tmp_path: Path) -> None:
    """With the exporter's reason."""
    with pytest.raises(PackageRefused, match=r"^networks:Branching: PyTorch cannot export it: .*data-dependent"):
        make(tmp_path, 'kind = "pytorch"\nfrom = "networks:Branching"\noutputs = ["p"]', "p")


@pytest.mark.parametrize("name", ["model.pt2", "model.pt"])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(
        PackageRefused, match=rf"^{name}: expected a \.pt2 file of torch\.export, or one of TorchScript: "
    ):
        make(tmp_path, f'kind = "pytorch"\nfrom = "{name}"\noutputs = ["p"]', "p")
