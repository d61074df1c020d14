import subprocess
from collections.abc import Iterator

import pytest
from compose import Stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole stack, up and healthy; nothing of it is left afterwards."""
    stack = Stack(tmp_path_factory.mktemp("e2e"))
    try:
        stack.up("--build")
        stack.fetch_ca()
        yield stack
    except BaseException:
        print(stack.compose("ps", "--all", check=False))  # noqa: T201  # for who reads the failure
        print(stack.compose("logs", "--no-color", "--tail", "30", check=False))  # noqa: T201  # the same
        raise
    finally:
        stack.compose("down", "--volumes", "--timeout", "30", check=False)
    left = subprocess.run(
        ["docker", "system", "df", "--verbose", "--format", "json"], capture_output=True, text=True, check=True
    ).stdout
    assert stack.project not in left, "down --volumes leaves nothing"


@pytest.fixture
def two_containers(stack: Stack) -> Iterator[None]:
    stack.up("--scale", "api=2", "--no-recreate", "api")
    yield
    stack.up("--scale", "api=1", "--no-recreate", "api")
