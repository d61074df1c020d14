"""Models of TensorFlow, which is in an environment of its own. Run by `make test-models`."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from recipes import BATCH, CLASSES, RECIPE, rows, write_recipe

from inference_core.errors import PackageRefused
from model_tools.build import build
from model_tools.gate import check_export
from model_tools.recipe import read_recipe
from model_tools.sources import TENSORFLOW_PYTHON, TensorFlowSource
from model_tools.validate import open_model

PYTHON = str(Path(__file__).parents[2] / TENSORFLOW_PYTHON)
ROWS = rows(50, seed=2)
# Two inputs would be taken in the order of their names; `b` is what the recipe's `x` becomes.
MAKE = """
import keras, tensorflow as tf
keras.utils.set_random_seed(0)
x = keras.Input((8,), name="b")
hidden = keras.layers.Dense(16, activation="relu")(x)
model = keras.Model(x, [keras.layers.Dense({classes}, activation="softmax")(hidden), keras.layers.Dense(2)(hidden)])
model.save("model.keras")
model.export("saved", verbose=False)
open("model.tflite", "wb").write(tf.lite.TFLiteConverter.from_saved_model("saved").convert())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the same model in its three forms."""
    folder = tmp_path_factory.mktemp("tensorflow")
    script = MAKE.replace("(8,)", f"({ROWS.shape[1]},)").format(classes=CLASSES)
    subprocess.run([PYTHON, "-c", script], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("origin", ["saved", "model.keras", "model.tflite"])
def test_a_model_of_tensorflow(origin: str, folder: Path) -> None:
    """Whatever it was kept in, it says in ONNX what it says there, of one row and of many."""
    exported = TensorFlowSource(origin, outputs=("p", "q"), python=PYTHON).export(folder, {"x": ROWS})
    checks = check_export(open_model(exported.model), exported.answer, {"x": ROWS}, BATCH, 1e-4)
    assert all(check.holds for check in checks)
    assert {"tensorflow-cpu", "tf2onnx"} <= exported.tools.keys()


def test_a_package_of_it(folder: Path) -> None:
    """With the versions of what made it, which are not those that are here."""
    source = 'kind = "tensorflow"\nfrom = "saved"\noutputs = ["p", "q"]\n'
    source += f'python = "{PYTHON}"'
    recipe = RECIPE.replace('kind = "onnx"\nfrom = "blobs.onnx"', source)
    path = write_recipe(folder, "", recipe=recipe)
    [(manifest, _)] = build(read_recipe(path), folder)
    assert [(spec.name, spec.shape) for spec in manifest.outputs] == [("p", (-1, CLASSES)), ("q", (-1, 2))]
    assert {"tensorflow-cpu", "tf2onnx", "onnxruntime"} <= manifest.built.keys()


def test_inputs_are_told_apart_by_their_names(folder: Path) -> None:
    """A SavedModel has no order of them: rows of another order are not given to the wrong one."""
    script = """
import keras
a, b = keras.Input((1,), name="age"), keras.Input((1,), name="weight")
keras.Model([a, b], keras.ops.subtract(a, b)).export("two", verbose=False)
"""
    subprocess.run([PYTHON, "-c", script], cwd=folder, check=True, capture_output=True)
    feed = {"weight": np.full((2, 1), 5, np.float32), "age": np.full((2, 1), 7, np.float32)}
    exported = TensorFlowSource("two", outputs=("y",), python=PYTHON).export(folder, feed)
    assert exported.answer(feed)["y"].tolist() == [[2], [2]]
    assert open_model(exported.model).run(["y"], feed)[0].tolist() == [[2], [2]]
    with pytest.raises(PackageRefused, match=r"inputs: expected age, weight as in the signature, got age, height"):
        TensorFlowSource("two", outputs=("y",), python=PYTHON).export(folder, {"age": ROWS, "height": ROWS})


@pytest.mark.parametrize(
    ("origin", "outputs", "reason"),
    [
        ("broken.tflite", ("p", "q"), "broken.tflite: TensorFlow cannot export it: "),
        ("model.keras", ("p",), r"outputs: expected 1 \(p\), got 2"),
        ("model.tflite", ("p", "q", "r"), r"outputs: expected 3 \(p, q, r\), got 2"),
        ("away", ("p",), "away: expected a SavedModel, a .keras or a .tflite file in "),
    ],
)
def test_what_is_none_is_refused(origin: str, outputs: tuple[str, ...], reason: str, folder: Path) -> None:
    """With what TensorFlow says of it, and without a traceback."""
    (folder / "broken.tflite").write_bytes(b"no model")
    with pytest.raises(PackageRefused, match=reason):
        TensorFlowSource(origin, outputs=outputs, python=PYTHON).export(folder, {"x": ROWS})
