"""What models/README.md promises in ten minutes, done: its files and its commands, in a repository of its own."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from command_line.main import main
from inference_core.manifest import Package, read_package
from model_tools.objects import read_rows
from model_tools.sources import TorchSource
from model_tools.validate import accuracy, open_model, run

DIGITS = Path(__file__).parents[2] / "models" / "digits"
SECTION = "## Serve your own model in ten minutes"
README = (DIGITS.parent / "README.md").read_text().partition(SECTION)[2].partition("\n## ")[0]
RECIPES = re.findall(r"make build RECIPE=models/digits/(\w+\.toml)", README)
COMMANDS = re.findall(r"^tiercel (\w+ models.*)$", README, re.MULTILINE)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a copy of the example, in which all that the walk-through builds has been built."""
    models = tmp_path_factory.mktemp("walk-through") / "models"
    shutil.copytree(DIGITS, models / "digits", ignore=shutil.ignore_patterns("[0-9]*", "__pycache__"))
    for recipe in RECIPES:
        assert main(["build", str(models / "digits" / recipe), "--models", str(models)]) is None
    return models


def package(models: Path, version: str) -> Package:
    return read_package(models / "digits" / version, 1 << 20)


def held_out_accuracy(model: bytes, scale: float = 1.0) -> float:
    rows, labels = read_rows("digits:held_out", DIGITS)
    assert labels is not None
    return accuracy(run(open_model(model), {"image": rows["image"] / np.float32(scale)}, "probabilities", 64), labels)


def test_the_walk_through_has_what_is_tested() -> None:
    """Two recipes and the six commands."""
    assert RECIPES == ["recipe.toml", "pruned.toml"]
    assert {command.split()[0] for command in COMMANDS} == {
        "inspect",
        "verify",
        "predict",
        "diff",
        "benchmark",
        "report",
    }
    recipe = (DIGITS / "recipe.toml").read_text()
    quoted = README.partition("```toml\n")[2].partition("```")[0].splitlines()
    assert [line for line in quoted if line.split("  #")[0].rstrip() not in recipe] == []


@pytest.mark.parametrize("version", ["1", "2"])
def test_variants_are_within_a_point_of_fp32(models: Path, version: str) -> None:
    """INT8, and INT8 of a pruned network, on labels that neither training nor calibration has seen."""
    rows, _ = read_rows("digits:calibration", DIGITS)
    prepared = {"image": rows["image"] / np.float32(16)}
    fp32 = TorchSource("digits:network", ("probabilities",)).export(DIGITS, prepared).model
    made = package(models, version)
    loss = held_out_accuracy(fp32, scale=16) - held_out_accuracy(made.model)
    assert loss <= 1
    assert made.manifest.gate is not None
    assert made.manifest.gate.rows == 450
    assert len(made.model) < len(fp32) / 3


def test_what_was_pruned_stays_so(models: Path) -> None:
    """Six of ten weights are 0 in the INT8 package as well."""
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(package(models, "2").model).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]
    zeros = sum(int(np.sum(array == 0)) for array in weights) / sum(array.size for array in weights)
    assert zeros >= 0.6


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_works(
    command: str, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands there; `diff` finds differences."""
    monkeypatch.chdir(models.parent)
    assert main(shlex.split(command)) == (1 if command.startswith("diff") else None)
    assert capsys.readouterr().out


def test_the_examples_are_recognised(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A 3 and a 7."""
    assert (
        main(["predict", str(models / "digits" / "2"), str(models / "digits" / "examples" / "instances.json")]) is None
    )
    answer = json.loads(capsys.readouterr().out)
    assert [int(np.argmax(row)) for row in answer["predictions"]] == [3, 7]
