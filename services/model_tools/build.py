"""From a recipe to what is to be published: source, passes, gate, manifest. Nothing is written anywhere."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort

from inference_core.errors import PackageRefused
from inference_core.manifest import InputStatistics, Manifest, TensorSpec
from inference_core.model import load_model
from inference_core.runtimes.onnx import spec_of
from inference_core.tensors import DATATYPES
from model_tools.artifact import Artifact, Feed, Pass, QuantisingPass
from model_tools.benchmark import median_latencies
from model_tools.export import OPSET
from model_tools.gate import Candidate, Measure, Reference, Verdict, check_export, judge, variant
from model_tools.objects import call, read_rows
from model_tools.publish import Built, describe, in_memory, versions
from model_tools.recipe import Recipe
from model_tools.siblings import build_siblings
from model_tools.validate import Array, in_one_line, open_model

# A column of a table has statistics of its own, up to so many.
MAX_COLUMNS = 1024


def build(recipe: Recipe, folder: Path, measure: Measure = median_latencies) -> list[Built]:
    """What the recipe in `folder` makes, the ONNX package first; PackageRefused with the figure and the budget if any
    of it fails the gate.
    """
    names = tuple(call(recipe.labels, folder)) if isinstance(recipe.labels, str) else recipe.labels
    calibration, _ = read_rows(recipe.data.calibration, folder)
    held_out, labels = read_rows(recipe.data.held_out, folder)
    fold = recipe.preprocessing
    exported = recipe.source.export(folder, fold.prepare(calibration) if fold else calibration)
    export = Artifact(exported.model, calibration, recipe.output).then(
        "source", exported.model, msgspec.to_builtins(recipe.source)
    )
    if fold:
        export = fold.apply(export)
    _check_signature(recipe, export.model, held_out)
    reference = Reference(
        lambda feed: exported.answer(fold.prepare(feed) if fold else feed), variant(export.model), held_out, labels
    )
    built = _in_onnx(recipe, export, reference, names, exported.tools, measure)
    if not recipe.exports:
        return [built]
    module = fold.before(exported.module, calibration) if fold else exported.module
    return [built, *build_siblings(recipe, module, export, built.manifest, reference, measure)]


def _in_onnx(
    recipe: Recipe,
    export: Artifact,
    reference: Reference,
    names: tuple[str, ...],
    tools: Mapping[str, str],
    measure: Measure,
) -> Built:
    batch = recipe.max_batch_size
    checks = check_export(reference.export.session, reference.answer, reference.rows, batch, recipe.gate.tolerance)
    artifact = export
    for step in recipe.passes[1 if recipe.preprocessing else 0 :]:
        artifact = _apply(step, artifact)
    budget = recipe.gate
    if budget.min_speedup is None and any(isinstance(step, QuantisingPass) for step in recipe.passes):
        budget = msgspec.structs.replace(budget, min_speedup=1.0)
    candidate = Candidate(reference.export, variant(artifact.model), recipe.output)
    verdict = judge(candidate, reference.rows, reference.labels, budget, batch, checks, measure)
    built = Built(_manifest(recipe, names, artifact, verdict, tools), artifact.model)
    load_model(in_memory(*built), intra_op_threads=1)  # which is what the server will do
    return built


def _apply(step: Pass, artifact: Artifact) -> Artifact:
    try:
        return step.apply(artifact)
    except PackageRefused:
        raise
    except Exception as error:  # whatever the libraries behind a pass trip over in a graph that they do not expect
        raise PackageRefused(f"{step.name}: fails on this model: {in_one_line(error)}") from error


def _check_signature(recipe: Recipe, model: bytes, rows: Feed) -> None:
    session = open_model(model)
    outputs = [output.name for output in session.get_outputs()]
    if recipe.output not in outputs:
        raise PackageRefused(f"output: expected one of {outputs}, got '{recipe.output}'")
    inputs = sorted(taken.name for taken in session.get_inputs())
    if inputs != sorted(rows):
        raise PackageRefused(f"held_out: expected an array for each of the inputs {inputs}, got {sorted(rows)}")


def _manifest(
    recipe: Recipe, labels: tuple[str, ...], artifact: Artifact, verdict: Verdict, tools: Mapping[str, str]
) -> Manifest:
    session = open_model(artifact.model)
    first, *others = (_spec(value) for value in session.get_inputs())
    return Manifest(
        name=recipe.name,
        version=recipe.version,
        description=recipe.description,
        model=describe(artifact.model),
        inputs=(msgspec.structs.replace(first, features=recipe.features), *others),
        outputs=tuple(_spec(value) for value in session.get_outputs()),
        max_batch_size=recipe.max_batch_size,
        licence=recipe.licence,
        source=recipe.origin,
        metrics=verdict.metrics,
        built={**versions(("onnx", "onnxruntime")), **tools, "opset": str(OPSET)},
        image=recipe.image,
        labels=labels,
        gate=verdict.gate,
        lineage=artifact.lineage,
        statistics={
            name: statistics(array) for name, array in artifact.calibration.items() if array.dtype.kind in "iuf"
        },
    )


def _spec(value: ort.NodeArg) -> TensorSpec:
    spec = spec_of(value)
    if spec.datatype not in DATATYPES:
        raise PackageRefused(f"'{spec.name}': expected a tensor of a type that can be served, got {spec.datatype}")
    return spec


def statistics(array: Array) -> InputStatistics:
    """Over the rows of a table with few columns, else over all values; what is not finite is passed over."""
    values = array.astype(np.float64)
    table = values if values.ndim == 2 and values.shape[1] <= MAX_COLUMNS else values.reshape(-1, 1)
    columns = [column[np.isfinite(column)] for column in table.T]
    figures = [
        tuple(float(figure(column)) if column.size else 0.0 for column in columns)
        for figure in (np.mean, np.std, np.min, np.max)
    ]
    return InputStatistics(len(array), *figures)
