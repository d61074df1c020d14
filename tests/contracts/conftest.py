from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edge import Canary, Edge, StandIn, make_certificate
from model_zoo import HALF, STRING, Zoo
from servers import WORKER_CLASSES, Server, held, wait_until


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


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, and the CA that signed it."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def shared_edge(
    models: Path, worker_class: str, tls: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Edge, Server]]:
    folder, limit = tmp_path_factory.mktemp("edge"), 1 << 20
    with (
        held(folder / "api.sock") as path,
        Server(models, worker_class, listener=path, workers=2, max_body_bytes=limit) as server,
        Edge(path, tls, folder / "run", tiercel_max_body_bytes=limit) as edge,
    ):
        wait_until(lambda: len(server.workers()) == 2, "both workers have started")
        yield edge, server


@pytest.fixture
def edge(shared_edge: tuple[Edge, Server]) -> Iterator[Edge]:
    """NGINX before a server. Nothing that a client sends ends a worker of either."""
    before = [set(each.workers()) for each in shared_edge]
    yield shared_edge[0]
    assert [set(each.workers()) for each in shared_edge] == before, shared_edge[1].log()[-3000:]


@pytest.fixture(scope="session")
def canary(shared_edge: tuple[Edge, Server]) -> Iterator[Canary]:
    with Canary(shared_edge[0]) as canary:
        yield canary


@pytest.fixture(scope="session")
def shared_mirror(tls: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Edge, StandIn]]:
    folder, settings = tmp_path_factory.mktemp("mirror"), {"tiercel_max_body_bytes": 1 << 20}
    with StandIn(folder / "api.sock") as api, Edge(folder / "api.sock", tls, folder / "run", **settings) as edge:
        yield edge, api


@pytest.fixture
def mirror(shared_mirror: tuple[Edge, StandIn]) -> Edge:
    """NGINX before something that answers with what reached it."""
    return shared_mirror[0]


@pytest.fixture
def received(shared_mirror: tuple[Edge, StandIn]) -> list[dict[str, Any]]:
    """The requests that have come through the mirror in this test."""
    shared_mirror[1].received.clear()
    return shared_mirror[1].received
