from collections.abc import Iterator
from pathlib import Path

import pytest
from app_client import MODELS, Client, start
from model_zoo import HALF, STRING, Zoo


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """An application that serves one of each of the models that tests need; for tests that change nothing."""
    folder = tmp_path_factory.mktemp("served")
    zoo = Zoo(folder / "models")
    for add in (zoo.scale, zoo.named, zoo.mixed, zoo.count, zoo.endless, zoo.gather, zoo.colour):
        add()
    zoo.copy("text", STRING)
    zoo.copy("half", HALF)
    services = start(zoo.root, folder / "state", max_body_bytes=1 << 20, max_image_pixels=64 * 64)
    yield Client(services)
    services.rollout.stop()


@pytest.fixture
def own_client(zoo: Zoo, tmp_path: Path) -> Iterator[Client]:
    """An application of this test's own, which serves what the test has put into `zoo` before it asks for this."""
    services = start(zoo.root, tmp_path / "state")
    yield Client(services)
    services.rollout.stop()


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """An application that serves the models that ship."""
    services = start(MODELS, tmp_path_factory.mktemp("shipped"))
    yield Client(services)
    services.rollout.stop()
