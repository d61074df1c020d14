"""The same model for other runtimes: a package each beside the ONNX one, `<name>-<runtime>`, held to the same source.

It is the source in FP32 with its preprocessing: the other passes are for ONNX, and so are the budgets of what they are
there for, size and speed.
"""

from typing import Any

import msgspec

from inference_core.errors import PackageRefused
from inference_core.manifest import Manifest
from model_tools.artifact import Artifact
from model_tools.gate import Candidate, Measure, Reference, Variant, check_export, judge
from model_tools.publish import Built, describe, in_memory, versions
from model_tools.recipe import Recipe
from model_tools.validate import Served


def build_siblings(
    recipe: Recipe, module: Any, export: Artifact, manifest: Manifest, reference: Reference, measure: Measure
) -> list[Built]:
    """One for each runtime that the recipe wants exports for, of PyTorch's `module`; PackageRefused if one of them is.

    `export` is the source in ONNX, and `manifest` that of the ONNX package.
    """
    built = []
    for runtime in sorted(recipe.exports):
        try:
            sibling = _convert(runtime, module, export, manifest)
            built.append(_judged(sibling, recipe, reference, measure))
        except PackageRefused as error:
            raise PackageRefused(f"{runtime}: {error}") from error
    return built


def _convert(runtime: str, module: Any, export: Artifact, manifest: Manifest) -> Built:
    from model_tools.convert import CONVERTERS, convert

    model = convert(runtime, module, export.calibration, tuple(spec.name for spec in manifest.outputs))
    changes = {
        "name": f"{manifest.name}-{runtime}",
        "runtime": runtime,
        "model": describe(model),
        "built": versions(CONVERTERS[runtime].tools),
        "lineage": export.then(runtime, model, {}).lineage,
    }
    return Built(msgspec.structs.replace(manifest, **changes), model)


def _judged(sibling: Built, recipe: Recipe, reference: Reference, measure: Measure) -> Built:
    served = Served(in_memory(*sibling))
    batch = recipe.max_batch_size
    checks = check_export(served, reference.answer, reference.rows, batch, recipe.gate.tolerance)
    candidate = Candidate(reference.export, Variant(served, len(sibling.model)), recipe.output)
    budget = msgspec.structs.replace(recipe.gate, max_size_bytes=None, min_speedup=None, max_latency_ms=None)
    verdict = judge(candidate, reference.rows, reference.labels, budget, batch, checks, measure)
    return Built(msgspec.structs.replace(sibling.manifest, gate=verdict.gate, metrics=verdict.metrics), sibling.model)
