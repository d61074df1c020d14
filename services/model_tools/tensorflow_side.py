"""What TensorFlow does for a recipe, in an environment of its own: it wants other versions of what we have, too.

python tensorflow_side.py FOLDER: reads FOLDER/task.json, and for its `origin` (the folder of a SavedModel, a .keras
file or a .tflite file) writes FOLDER/model.onnx and FOLDER/versions.json; or, if there is a FOLDER/rows.npz, what the
model says to those rows into FOLDER/answers.npz. What is wrong is the last line of standard error.

NOTE: it imports nothing of this project, which is not installed there.
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

SIGNATURE = "serving_default"
TOOLS = ("tensorflow", "tensorflow-cpu", "keras", "tf2onnx", "onnx")


class Loaded(NamedTuple):
    """`answer` takes and gives arrays in the order of the model's own inputs and outputs."""

    convert: Callable[[int], Any]
    answer: Callable[[list[Any]], list[Any]]


def main() -> None:
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text())
    origin = Path(task["origin"])
    loaded = {".tflite": load_tflite, ".keras": load_keras}.get(origin.suffix, load_saved_model)(origin, task["inputs"])
    if (folder / "rows.npz").exists():
        with np.load(folder / "rows.npz") as rows:
            answers = loaded.answer([rows[f"arr_{at}"] for at in range(len(task["inputs"]))])
        check("outputs", task["outputs"], answers)
        np.savez(folder / "answers.npz", *answers)
        return
    model = loaded.convert(task["opset"])
    rename(model.graph, "inputs", model.graph.input, task["inputs"])
    rename(model.graph, "outputs", model.graph.output, task["outputs"])
    onnx.checker.check_model(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "versions.json").write_text(json.dumps(versions()))


def load_keras(origin: Path, names: list[str]) -> Loaded:
    import keras

    model = keras.saving.load_model(origin)

    def run(*arrays: Any) -> Any:
        return tf.nest.flatten(model(list(arrays) if len(arrays) > 1 else arrays[0], training=False))

    return of_function(run, model.inputs)


def load_saved_model(origin: Path, names: list[str]) -> Loaded:
    """By its signature, which has names for inputs and outputs and no order; outputs are in that of their names."""
    model = tf.saved_model.load(str(origin))
    signature = model.signatures[SIGNATURE]
    specs = signature.structured_input_signature[1]
    # Of one input there is no doubt, whatever it is called there.
    theirs = dict(zip(names, specs, strict=True)) if len(names) == len(specs) == 1 else {name: name for name in specs}
    if set(names) != set(theirs):
        raise SystemExit(f"inputs: expected {', '.join(sorted(specs))} as in the signature, got {', '.join(names)}")

    def run(*arrays: Any, keep: Any = model) -> Any:  # its variables go when nobody has it any more
        answers = signature(**{theirs[name]: array for name, array in zip(names, arrays, strict=True)})
        return [answers[name] for name in sorted(answers)]

    return of_function(run, [specs[theirs[name]] for name in names])


def of_function(run: Callable[..., Any], inputs: list[Any]) -> Loaded:
    specs = [tf.TensorSpec(each.shape, each.dtype, name=f"input_{at}") for at, each in enumerate(inputs)]
    function = tf.function(run, input_signature=specs)
    return Loaded(
        lambda opset: tf2onnx.convert.from_function(function, input_signature=specs, opset=opset)[0],
        lambda arrays: [answer.numpy() for answer in function(*map(tf.constant, arrays))],
    )


def load_tflite(origin: Path, names: list[str]) -> Loaded:
    def answer(arrays: list[Any]) -> list[Any]:
        interpreter = tf.lite.Interpreter(str(origin))
        inputs = interpreter.get_input_details()
        check("inputs", [each["name"] for each in inputs], arrays)
        for each, array in zip(inputs, arrays, strict=True):
            interpreter.resize_tensor_input(each["index"], array.shape)
        interpreter.allocate_tensors()
        for each, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(each["index"], array)
        interpreter.invoke()
        return [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]

    return Loaded(lambda opset: tf2onnx.convert.from_tflite(str(origin), opset=opset)[0], answer)


def rename(graph: Any, what: str, values: Any, names: list[str]) -> None:
    check(what, names, values)
    new = {value.name: name for value, name in zip(values, names, strict=True)}
    for value in values:
        value.name = new[value.name]
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]


def check(what: str, names: list[str], found: Any) -> None:
    if len(names) != len(found):
        raise SystemExit(f"{what}: expected {len(names)} ({', '.join(names)}), got {len(found)}")


def versions() -> dict[str, str]:
    found = {}
    for tool in TOOLS:
        try:
            found[tool] = version(tool)
        except PackageNotFoundError:  # tensorflow goes by two names
            continue
    return found


if __name__ == "__main__":
    main()
