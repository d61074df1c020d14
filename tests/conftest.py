from pathlib import Path

import pytest
from model_zoo import Zoo

ROOT = Path(__file__).parent.parent


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    """An empty model repository."""
    root = tmp_path / "models"
    root.mkdir()
    return Zoo(root)
