"""What a recipe names: a file beside it, or `module:function` in a module beside it."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from inference_core.errors import PackageRefused
from model_tools.artifact import Feed, rows_of
from model_tools.validate import Array

LABELS = "labels"


def call(name: str, folder: Path) -> Any:
    """What the function `module:function` returns; PackageRefused if there is none. What it raises passes through.

    The module may lie in `folder`, or be installed.
    """
    module_name, _, function = name.partition(":")
    sys.path.insert(0, str(folder))
    try:
        found = getattr(importlib.import_module(module_name), function)
    except ModuleNotFoundError as error:
        raise PackageRefused(f"{name}: expected a module in {folder} or an installed one: {error}") from None
    except AttributeError:
        raise PackageRefused(f"{name}: expected a function of that name in {module_name}, found none") from None
    finally:
        sys.path.remove(str(folder))
    return found()


def is_function(name: str) -> bool:
    return ":" in name


def read_file(name: str, folder: Path) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise PackageRefused(f"{name}: expected a file in {folder} or module:function: {error.strerror}") from None


def read_rows(name: str, folder: Path) -> tuple[Feed, Array | None]:
    """The arrays by name of input, and the labels if there are any."""
    arrays = dict(call(name, folder)) if is_function(name) else _read_npz(name, folder)
    labels = arrays.pop(LABELS, None)
    rows = {len(array) for array in (*arrays.values(), *(() if labels is None else (labels,)))}
    if not arrays or len(rows) != 1 or not rows_of(arrays):
        got = {name: list(array.shape) for name, array in arrays.items()}
        raise PackageRefused(f"{name}: expected an array for each input, and as many rows in each, got {got}")
    return arrays, labels


def _read_npz(name: str, folder: Path) -> Feed:
    try:
        with np.load(folder / name, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise PackageRefused(f"{name}: expected a .npz file in {folder} or module:function: {error}") from None
