"""What goes on around clients must not reach them: 200 predictions a second through HTTPS, and none may fail."""

import functools
import os
import signal
import time
from collections.abc import Iterator

import pytest
from compose import Stack
from load import Load
from servers import bearer, wait_until

PREDICT = "/v1/models/breast-cancer:predict"
RATE, CLIENTS = 200, 40
FOLDERS = [part for name in ("ca", "tls", "secrets") for part in (f"--{name}", f"/var/lib/tiercel/{name}")]


@pytest.fixture
def load(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Load]:
    """Requests before, during and for a while after what the test does; all of them are answered."""
    instances = {"instances": [[1.0] * 30]}
    keep_alive = getattr(request, "param", True)
    with Load(stack, PREDICT, instances, RATE, CLIENTS, keep_alive, bearer(stack.token)) as load:
        wait_until(lambda: load.sent > RATE // 2, "some requests")
        yield load
        before = load.sent
        wait_until(lambda: load.sent > before + 2 * RATE, "requests afterwards")
    print(f"{load.sent} requests, failed: {load.failed}")  # noqa: T201  # for the figures of a run with -s
    assert load.failed == {}
    assert len(load.bodies) == 1


def test_a_worker_is_killed(stack: Stack, load: Load) -> None:
    [container] = stack.ids("api")
    victim = stack.workers(container)[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in stack.workers(container), "it has ended")
    wait_until(lambda: len(stack.workers(container)) >= min(2, os.cpu_count() or 1), "another has started")


def test_one_of_two_containers_is_killed(stack: Stack, two_containers: None, load: Load) -> None:
    victim = min(stack.ids("api"))
    stack.kill_init(victim)
    stack.wait_healthy("api")


def test_one_of_two_containers_is_stopped(stack: Stack, two_containers: None, load: Load) -> None:
    stack.docker("stop", min(stack.ids("api")))


def test_the_only_container_is_replaced_by_one_of_a_new_image(stack: Stack, load: Load) -> None:
    """`docker compose up -d` after a build: there is nobody for a moment, and requests wait."""
    before = stack.ids("api")
    label = f"FROM tiercel-api\nLABEL org.tiercel.test={time.time_ns()}\n"
    stack.docker("build", "--quiet", "--tag", "tiercel-api", "-", stdin=label)
    others = stack.ids() - before
    stack.up()
    assert not before & stack.ids("api")
    assert others <= stack.ids(), "nothing else was replaced"


def test_what_holds_the_socket_is_killed(stack: Stack, load: Load) -> None:
    """The API comes back to whoever holds it next."""
    [listener] = stack.ids("listener")
    stack.kill_init(listener)
    stack.wait_healthy("listener")
    stack.wait_healthy("api")


@pytest.mark.parametrize("load", [False], indirect=True, ids=["a connection for each request"])
def test_the_edge_reloads_and_gets_another_certificate(stack: Stack, load: Load) -> None:
    """Before NGINX 1.27.4, a request on a kept connection may cross with its end at a reload: see nginx/start.sh."""
    certificate = stack.compose("exec", "-T", "nginx", "cat", "/etc/tiercel/tls/server.crt")
    stack.compose("run", "--rm", "-T", "setup", "python", "/app/first_start.py", *FOLDERS, "--renew-certificate")
    for _ in range(3):
        stack.compose("exec", "-T", "nginx", "sh", "/etc/tiercel/nginx/start.sh", "reload")
    assert stack.compose("exec", "-T", "nginx", "cat", "/etc/tiercel/tls/server.crt") != certificate


def test_containers_that_are_added_have_their_share_within_ten_seconds(stack: Stack, load: Load) -> None:
    stack.up("--scale", "api=3", "--no-recreate", "api")
    try:
        used = {container: stack.cpu_seconds(container) for container in stack.ids("api")}
        assert len(used) == 3

        def all_work() -> bool:
            return all(stack.cpu_seconds(container) - seconds > 0.05 for container, seconds in used.items())

        wait_until(all_work, "all three have served", 10)
    finally:
        stack.up("--scale", "api=1", "--no-recreate", "api")


@pytest.mark.parametrize("service", ["redis-cache", "redis-queue", "worker", "nginx"])
def test_what_was_killed_comes_back(stack: Stack, service: str) -> None:
    [container] = stack.ids(service)
    started = functools.partial(stack.docker, "inspect", "--format", "{{.State.StartedAt}}", container)
    before = started()
    stack.kill_init(container)
    wait_until(lambda: started() != before, "it has started again", 30)
    stack.wait_healthy(service)
    assert stack.request("POST", PREDICT, b'{"instances":[[' + b"1," * 29 + b"1]]}").status == 200
