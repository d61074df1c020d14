import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from model_zoo import Zoo, edit_manifest
from servers import wait_until
from structlog.testing import capture_logs

from inference_core.errors import NotFound, PackageRefused, TiercelError, Unavailable
from inference_core.manifest import Package
from inference_core.model import Model, load_model
from inference_core.repository import Repository
from inference_core.rollout import Rollout, propose
from inference_core.shared_state import Desired, SharedState

MAX_BYTES = 1 << 20
TIMEOUT = 20.0

Load = Callable[[Package], Model]


def load(package: Package) -> Model:
    return load_model(package, intra_op_threads=1)


def load_only_version_1(package: Package) -> Model:
    """A process that has no memory left for the next version, say."""
    if package.manifest.version != "1":
        raise PackageRefused("no memory left")
    return load(package)


class Worker:
    """One process among those that share a state, as far as models go."""

    def __init__(self, zoo: Zoo, state: Path, load: Load, poll_seconds: float, timeout: float) -> None:
        self.repository = Repository(zoo.root, load, MAX_BYTES)
        self.rollout = Rollout(self.repository, SharedState(state), MAX_BYTES, timeout, poll_seconds)
        self.rollout.start()

    def serves(self) -> dict[str, str]:
        return {model.manifest.name: model.manifest.version for model in self.repository.loaded()}

    def index(self) -> dict[str, tuple[str, str]]:
        return {f"{entry.name}/{entry.version}": (entry.state, entry.reason) for entry in self.rollout.index()}


class Workers:
    """`start()` adds a worker over the one repository and state."""

    def __init__(self, zoo: Zoo, state: Path) -> None:
        self._zoo = zoo
        self._state = state
        self._all: list[Worker] = []

    def start(self, load: Load = load, poll_seconds: float = 0, timeout: float = TIMEOUT) -> Worker:
        if not self.state.read().generation:
            self.state.write(propose(Repository(self._zoo.root, load, MAX_BYTES), MAX_BYTES))
        self._all.append(Worker(self._zoo, self._state, load, poll_seconds, timeout))
        return self._all[-1]

    @property
    def state(self) -> SharedState:
        return SharedState(self._state)

    def stop(self) -> None:
        for worker in self._all:
            worker.rollout.stop()


@pytest.fixture
def workers(zoo: Zoo, tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(zoo, tmp_path / "state")
    yield workers
    workers.stop()


def refusal(change: Callable[[], None], kind: type[TiercelError] = PackageRefused) -> str:
    with pytest.raises(kind) as refused:
        change()
    return str(refused.value)


def break_package(folder: Path) -> None:
    edit_manifest(folder, model={"sha256": "0" * 64, "size_bytes": 1})


def test_the_newest_sound_version_is_proposed(zoo: Zoo, workers: Workers) -> None:
    """A broken newest version is passed over and its reason kept; the rest is served."""
    zoo.scale(version=9)
    break_package(zoo.scale(version=10))
    zoo.named()
    worker = workers.start()
    assert worker.serves() == {"scale": "9", "named": "1"}
    assert worker.rollout.unready() == {}
    state, reason = worker.index()["scale/10"]
    assert state == "UNAVAILABLE"
    assert reason.startswith("model.onnx: expected 1 bytes")


def test_a_model_without_a_sound_version_makes_unready(zoo: Zoo, workers: Workers) -> None:
    """The others are served, and the reason is told."""
    break_package(zoo.scale())
    zoo.named()
    worker = workers.start()
    assert worker.serves() == {"named": "1"}
    assert list(worker.rollout.unready()) == ["scale"]
    assert worker.rollout.unready()["scale"].startswith("version 1: model.onnx: expected 1 bytes")


@pytest.mark.parametrize("sound", [True, False])
def test_a_pinned_version_is_proposed_and_no_other(sound: bool, zoo: Zoo, workers: Workers) -> None:
    """Whoever pins a version wants that one or none."""
    zoo.scale(version=1)
    zoo.scale(version=2)
    (zoo.root / "scale" / "model.toml").write_text(f'version = "{1 if sound else 7}"')
    worker = workers.start()
    assert worker.serves() == ({"scale": "1"} if sound else {})
    assert list(worker.rollout.unready()) == ([] if sound else ["scale"])


def test_a_load_reaches_all(zoo: Zoo, workers: Workers) -> None:
    """When a load returns, every worker serves it; one that joins later agrees."""
    zoo.scale(version=1)
    first, second = workers.start(), workers.start()
    zoo.scale(version=2)
    zoo.named()
    assert first.serves() == second.serves() == {"scale": "1"}

    second.rollout.load("scale")
    assert first.serves() == second.serves() == {"scale": "2"}
    first.rollout.load("named", "1")
    assert first.serves() == second.serves() == workers.start().serves() == {"scale": "2", "named": "1"}
    assert first.index() == {"named/1": ("READY", ""), "scale/1": ("UNAVAILABLE", "unloaded"), "scale/2": ("READY", "")}


def test_an_unload_reaches_all(zoo: Zoo, workers: Workers) -> None:
    """When an unload returns, no worker serves it; it can be loaded again, and unloading twice is no error."""
    zoo.scale()
    zoo.named()
    first, second = workers.start(), workers.start()
    for _ in range(2):
        first.rollout.unload("scale")
        assert first.serves() == second.serves() == {"named": "1"}
    assert first.rollout.unready() == {}
    assert refusal(lambda: first.repository.get("scale"), Unavailable) == "model 'scale': is not loaded"
    second.rollout.load("scale")
    assert first.serves() == second.serves() == {"named": "1", "scale": "1"}


def test_a_rollback_is_a_load(zoo: Zoo, workers: Workers) -> None:
    """An older version is loaded like any other."""
    zoo.scale(version=1)
    zoo.scale(version=2)
    first, second = workers.start(), workers.start()
    first.rollout.load("scale", "1")
    assert first.serves() == second.serves() == {"scale": "1"}


def test_a_member_that_cannot_follow_undoes_the_change(zoo: Zoo, workers: Workers) -> None:
    """If one worker cannot load it, none keeps it, the reason is told, and all are ready as before."""
    zoo.scale(version=1)
    able, unable = workers.start(), workers.start(load_only_version_1)
    zoo.scale(version=2)
    assert refusal(lambda: able.rollout.load("scale")) == "model 'scale' version 2: version 2: no memory left"
    assert able.serves() == unable.serves() == {"scale": "1"}
    assert able.rollout.unready() == unable.rollout.unready() == {}
    assert able.index()["scale/2"] == ("UNAVAILABLE", "version 2: no memory left")


def test_a_member_that_does_not_follow_in_time_undoes_the_change(zoo: Zoo, workers: Workers) -> None:
    """A process that hangs makes the change Unavailable, not the version bad, and nothing stays changed."""
    zoo.scale()
    worker = workers.start(timeout=0.2)
    hanging = workers.state.join()
    said = refusal(lambda: worker.rollout.unload("scale"), Unavailable)
    assert said == "model 'scale': a worker did not follow the change within 0.2 s"
    hanging.leave()
    wait_until(lambda: worker.serves() == {"scale": "1"}, "the model is served again")
    assert workers.state.read().models == {"scale": "1"}
    assert workers.state.read().refused == {}


@pytest.mark.parametrize("how", ["package", "graph"])
def test_a_bad_version_is_refused(how: str, zoo: Zoo, workers: Workers) -> None:
    """Nothing changes, the reason is told and the index keeps it until the version is loaded after all."""
    zoo.scale(version=1)
    worker = workers.start()
    folder = zoo.scale(version=2) if how == "package" else zoo.garbage("scale", 2)
    if how == "package":
        break_package(folder)
    generation = workers.state.read().generation

    said = refusal(lambda: worker.rollout.load("scale", "2"))
    assert said.startswith("model 'scale' version 2: model.onnx: ")
    assert worker.serves() == {"scale": "1"}
    assert workers.state.read().generation == generation
    assert worker.index()["scale/2"] == ("UNAVAILABLE", said.removeprefix("model 'scale' version 2: "))

    shutil.rmtree(folder)
    zoo.scale(version=2)
    worker.rollout.load("scale", "2")
    assert worker.index()["scale/2"] == ("READY", "")
    assert workers.state.read().refused == {}


@pytest.mark.parametrize(("name", "version"), [("other", None), ("other", "1"), ("scale", "2"), ("../scale", "1")])
def test_what_is_not_there_is_not_found(name: str, version: str | None, zoo: Zoo, workers: Workers) -> None:
    """A model or version that the repository does not have."""
    zoo.scale()
    worker = workers.start()
    refusal(lambda: worker.rollout.load(name, version), NotFound)
    assert worker.serves() == {"scale": "1"}


def test_only_what_is_known_is_unloaded(zoo: Zoo, workers: Workers) -> None:
    """The message lists what could be."""
    zoo.scale()
    worker = workers.start()
    assert refusal(lambda: worker.rollout.unload("other"), NotFound) == "model 'other': expected one of ['scale']"


@pytest.mark.parametrize("what", ["folder", "policy"])
def test_a_model_is_unloaded_whatever_became_of_its_folder(what: str, zoo: Zoo, workers: Workers) -> None:
    """Removing a model's files, or spoiling its policy, does not make it impossible to stop serving it."""
    zoo.scale()
    worker = workers.start()
    if what == "folder":
        shutil.rmtree(zoo.root / "scale")
    else:
        (zoo.root / "scale" / "model.toml").write_text("?")
    worker.rollout.unload("scale")
    assert worker.serves() == {}


def test_a_worker_starts_although_a_version_is_gone(zoo: Zoo, workers: Workers) -> None:
    """What was decided and is no longer there makes a new worker unready, not dead."""
    zoo.scale()
    zoo.named()
    workers.start()
    shutil.rmtree(zoo.root / "scale")
    late = workers.start()
    assert late.serves() == {"named": "1"}
    assert late.rollout.unready() == {"scale": "version 1: model 'scale': expected one of the versions [], got 1"}


def test_polling_loads_what_is_new(zoo: Zoo, workers: Workers) -> None:
    """A new version, and a new model, are served without a request; a bad policy beside them holds up neither."""
    zoo.scale(version=1)
    zoo.named()
    first, second = workers.start(poll_seconds=0.05), workers.start()
    (zoo.root / "named" / "model.toml").write_text("?")
    zoo.scale(version=2)
    zoo.gather()
    wanted = {"scale": "2", "named": "1", "gather": "1"}
    wait_until(lambda: first.serves() == second.serves() == wanted, "both serve what is new")


def test_polling_does_not_undo_a_rollback(zoo: Zoo, workers: Workers) -> None:
    """Polling acts on what is new in the repository, not on what somebody decided."""
    zoo.scale(version=1)
    zoo.scale(version=2)
    worker = workers.start(poll_seconds=0.05)
    assert worker.serves() == {"scale": "2"}
    worker.rollout.load("scale", "1")
    # It is served by a look at the repository that came after the rollback, and to "scale" before "zebra".
    zoo.scale(name="zebra")
    wait_until(lambda: "zebra" in worker.serves(), "the repository was looked at again")
    assert worker.serves() == {"scale": "1", "zebra": "1"}
    zoo.scale(version=3)
    wait_until(lambda: worker.serves()["scale"] == "3", "a version newer than those at the rollback is served")


def test_polling_tries_a_bad_version_once(zoo: Zoo, workers: Workers) -> None:
    """What was refused is not tried again and again, and what comes after it is."""
    zoo.scale(version=1)
    with capture_logs() as logs:
        worker = workers.start(poll_seconds=0.01)
        zoo.garbage("scale", 2)
        wait_until(lambda: "scale/2" in workers.state.read().refused, "version 2 is refused")
        # Each is served by a look at the repository that comes to "scale" before.
        for later in ("zebra", "zebu"):
            zoo.scale(name=later)
            wait_until(lambda later=later: later in worker.serves(), "the repository was looked at again")
    assert worker.serves() == {"scale": "1", "zebra": "1", "zebu": "1"}
    assert [entry["version"] for entry in logs if entry["event"] == "package refused"] == ["2"]


def test_one_change_waits_for_another(zoo: Zoo, workers: Workers) -> None:
    """While a change is under way another is Unavailable, once it has waited for its time."""
    zoo.scale()
    worker = workers.start(timeout=0.05)
    with workers.state.exclusive(1):
        assert "another change is under way" in refusal(lambda: worker.rollout.unload("scale"), Unavailable)
    assert worker.serves() == {"scale": "1"}


def test_a_state_that_exists_is_followed(zoo: Zoo, workers: Workers) -> None:
    """A worker that starts serves what was decided, not what it would choose."""
    zoo.scale(version=1)
    zoo.scale(version=2)
    workers.state.write(Desired(5, {"scale": "1"}))
    assert workers.start().serves() == {"scale": "1"}
