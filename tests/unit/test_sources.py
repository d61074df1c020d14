import sys
from pathlib import Path

import numpy as np
import pytest

from inference_core.errors import PackageRefused
from model_tools.sources import TensorFlowSource

ROWS = {"x": np.zeros((2, 3), np.float32)}


def test_where_there_is_no_tensorflow_it_is_said_how_to_get_it(tmp_path: Path) -> None:
    """By the name of what was looked for."""
    (tmp_path / "model.tflite").write_bytes(b"")
    with pytest.raises(PackageRefused, match=r"^python: .*no/python: No such file.*make \.venv-tensorflow"):
        TensorFlowSource("model.tflite", outputs=("y",), python=str(tmp_path / "no" / "python")).export(tmp_path, ROWS)


def test_a_python_without_tensorflow_is_no_traceback(tmp_path: Path) -> None:
    """But the last line of one."""
    (tmp_path / "model.tflite").write_bytes(b"")
    with pytest.raises(PackageRefused, match=r"^model\.tflite: TensorFlow cannot export it: ModuleNotFoundError"):
        TensorFlowSource("model.tflite", outputs=("y",), python=sys.executable).export(tmp_path, ROWS)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Before TensorFlow is asked."""
    with pytest.raises(PackageRefused, match=r"^away: expected a SavedModel, a \.keras or a \.tflite file in "):
        TensorFlowSource("away", outputs=("y",)).export(tmp_path, ROWS)
