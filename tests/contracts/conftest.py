from collections.abc import Iterator
from pathlib import Path

import pytest
from model_zoo import HALF, STRING, Zoo
from servers import WORKER_CLASSES, Server, wait_until


@pytest.fixture(scope="session", params=WORKER_CLASSES)
def worker_class(request: pytest.FixtureRequest) -> str:
    """Every test that uses a server runs against each worker class."""
    return str(request.param)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of tiny models, which no test changes."""
    root = tmp_path_factory.mktemp("contracts") / "models"
    zoo = Zoo(root)
    zoo.scale()
    zoo.mixed()
    zoo.count()
    zoo.endless()
    zoo.hang()
    zoo.copy("half", HALF)
    zoo.copy("text", STRING)
    return root


@pytest.fixture(scope="session")
def shared_server(models: Path, worker_class: str) -> Iterator[Server]:
    with Server(models, worker_class, workers=2, max_body_bytes=1 << 20, request_timeout_ms=20000) as server:
        wait_until(lambda: len(server.workers()) == 2, "both workers have started")
        yield server


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """A server that must have the same workers after the test as before it: nothing that a client sends ends one."""
    before = set(shared_server.workers())
    yield shared_server
    assert set(shared_server.workers()) == before, shared_server.log()[-3000:]
