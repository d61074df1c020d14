"""`tiercel build`: from a recipe to packages in the model repository, or to the reason why not."""

import argparse
import os
from pathlib import Path
from typing import Any

from inference_core.errors import PackageRefused
from inference_core.manifest import Check, Manifest, Package


def add_to(commands: Any) -> None:
    parser = commands.add_parser("build", help="make and publish a model package", description=__doc__)
    parser.add_argument("recipe", type=Path, help="recipe.toml; what it may say stands in models/README.md")
    models = os.environ.get("TIERCEL_MODELS_DIR", "models")
    parser.add_argument("--models", type=Path, default=Path(models), help="the model repository; default %(default)s")
    parser.add_argument("--key", type=Path, help="private key (PEM, Ed25519) to sign the package with")
    parser.add_argument(
        "--replace", action="store_true", help="overwrite the version, should it exist with other content"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> str | None:
    # Heavy, and of no use to the other commands.
    from model_tools.build import build  # noqa: PLC0415
    from model_tools.publish import publish_all, read_private_key  # noqa: PLC0415
    from model_tools.recipe import RecipeError, read_recipe  # noqa: PLC0415

    try:
        recipe = read_recipe(options.recipe)
        key = read_private_key(options.key) if options.key else None
        built = build(recipe, options.recipe.resolve().parent)
        packages = publish_all(options.models, built, replace=options.replace, key=key)
    except RecipeError as error:
        return f"tiercel: {error}"  # sys.exit prints a string and exits with 1
    except PackageRefused as error:
        return f"tiercel: {recipe.name}/{recipe.version} is not published: {error}"
    except ImportError as error:
        return f"tiercel: {error}; `make build RECIPE={options.recipe}` has what recipes need"
    for (manifest, _), package in zip(built, packages, strict=True):
        report(manifest, package, options.models)
    return None


def report(manifest: Manifest, package: Package, models: Path) -> None:
    for step in manifest.lineage:
        print(f"{step.name:34} {step.model.size_bytes:>12,} bytes")
    for check in manifest.gate.checks if manifest.gate else ():
        print(f"{check.what:34} {in_words(check)}")
    print(f"published {models}/{manifest.name}/{manifest.version}  sha256:{package.digest}")


def in_words(check: Check) -> str:
    from model_tools.gate import budget_of, number  # noqa: PLC0415  # as above

    words = f"{number(check.figure):>12} {check.unit}".rstrip()
    return f"{words}, {budget}" if (budget := budget_of(check)) else words
