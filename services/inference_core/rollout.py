"""Changing what is served without a restart, in every worker or in none.

A change is tried in a process of its own, written to the shared state, followed by the thread that each worker has
for it, and undone if any of them cannot follow. The requests of a worker go on meanwhile with what it has loaded.
"""

import contextlib
import threading
import time

import msgspec
import structlog

from inference_core.errors import NotFound, PackageRefused, TiercelError, Unavailable
from inference_core.manifest import read_manifest, verify_package
from inference_core.probe import try_package
from inference_core.repository import Repository
from inference_core.shared_state import Desired, Progress, SharedState

# PERF: each look interrupts a request.
FOLLOW_SECONDS = 0.2
AGREE_SECONDS = 0.01

log = structlog.get_logger()


class VersionState(msgspec.Struct):
    """One entry of the repository index (extension "Model repository")."""

    name: str
    version: str
    state: str
    reason: str = ""


def propose(repository: Repository, max_bytes: int) -> Desired:
    """What to serve when nothing has been decided yet: of each model, the pinned or else the newest sound version."""
    models: dict[str, str | None] = {}
    proposed, refused = {}, {}
    for name in repository.names():
        proposed[name] = models[name] = repository.choose(name)
        pinned = repository.policy(name).version
        for version in (pinned,) if pinned else reversed(repository.versions(name)):
            try:
                # PERF: in constant memory, as what the arbiter allocates shapes the heap of every worker after it.
                verify_package(repository.folder(name, version), max_bytes, repository.keys_file)
            except TiercelError as error:
                refused[f"{name}/{version}"] = str(error)
                log.error("package refused", model=name, version=version, reason=str(error))
            else:
                models[name] = version
                break
    return Desired(1, models, proposed, refused)


class Rollout:
    def __init__(
        self,
        repository: Repository,
        state: SharedState,
        max_bytes: int,
        timeout: float,
        poll_seconds: float = 0,
    ) -> None:
        self._repository = repository
        self._state = state
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._poll_seconds = poll_seconds
        self._member = state.join()
        self._stamp = (-1, -1)
        self._progress = Progress()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Load what is desired, then follow its changes from a thread of this process."""
        self._follow()
        threading.Thread(target=self._follow_for_ever, name="rollout", daemon=True).start()
        if self._poll_seconds:
            threading.Thread(target=self._poll_for_ever, name="rollout-poll", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        self._member.leave()

    def load(self, name: str, version: str | None = None) -> None:
        """Serve `version` (None: what the repository chooses) of `name` in every worker, or change nothing."""
        with self._state.exclusive(self._timeout):
            before = self._state.read()
            version = version or self._repository.choose(name)
            folder = self._repository.folder(name, version)
            self._repository.policy(name)  # refused before anything changes
            try:
                try_package(folder, self._max_bytes, self._timeout, self._repository.keys_file)
            except PackageRefused as error:
                self._refuse(before, name, version, str(error))
            self._check_unaltered(name, version)
            self._change(before, name, version)

    def _check_unaltered(self, name: str, version: str) -> None:
        """A version that is served is what it was when it was loaded, or workers that start later would differ."""
        _, digest = read_manifest(self._repository.folder(name, version))
        for model in self._repository.loaded():
            served = model.manifest
            if (served.name, served.version) == (name, version) and model.digest != digest:
                raise PackageRefused(
                    f"model '{name}' version {version}: expected the package that is served (packages never change: "
                    f"publish another version), got one with the digest {digest}"
                )

    def unload(self, name: str) -> None:
        with self._state.exclusive(self._timeout):
            before = self._state.read()
            if name not in before.models:
                raise NotFound(f"model '{name}': expected one of {sorted(before.models)}")
            self._change(before, name, None)

    def unready(self) -> dict[str, str]:
        """Why this process does not serve what is desired, by model name; empty when it is ready."""
        return self._progress.failures

    def index(self) -> list[VersionState]:
        """The state of every version on disk."""
        refused = self._state.read().refused
        serving = {model.manifest.name: model.manifest.version for model in self._repository.loaded()}
        states = []
        for name in self._repository.names():
            for version in self._repository.versions(name):
                if serving.get(name) == version:
                    states.append(VersionState(name, version, "READY"))
                else:
                    states.append(
                        VersionState(name, version, "UNAVAILABLE", refused.get(f"{name}/{version}", "unloaded"))
                    )
        return states

    def _change(self, before: Desired, name: str, version: str | None) -> None:
        proposed = before.proposed | self._proposal(name)
        refused = {key: reason for key, reason in before.refused.items() if key != f"{name}/{version}"}
        after = Desired(before.generation + 1, before.models | {name: version}, proposed, refused)
        self._state.write(after)
        try:
            self._await_agreement(after.generation, name)
        except TiercelError as error:
            undone = msgspec.structs.replace(before, generation=after.generation + 1)
            self._state.write(undone)
            with contextlib.suppress(TiercelError):
                self._await_agreement(undone.generation, name)
            if version and isinstance(error, PackageRefused):
                self._refuse(undone, name, version, str(error))
            raise
        log.info("model changed", model=name, version=version, was=before.models.get(name))

    def _proposal(self, name: str) -> dict[str, str]:
        """What the repository would serve of `name`, if it has anything fit to be chosen from."""
        try:
            return {name: self._repository.choose(name)}
        except TiercelError:
            return {}

    def _await_agreement(self, generation: int, name: str) -> None:
        """Wait until every live process has reached `generation`; PackageRefused if one cannot serve `name`."""
        deadline = time.monotonic() + self._timeout
        while True:
            progress = self._state.progress()
            reasons = [p.failures[name] for p in progress if p.generation >= generation and name in p.failures]
            if reasons:
                raise PackageRefused(reasons[0])
            if progress and all(p.generation >= generation for p in progress):
                return
            if time.monotonic() > deadline:
                raise Unavailable(f"model '{name}': a worker did not follow the change within {self._timeout:g} s")
            time.sleep(AGREE_SECONDS)

    def _refuse(self, desired: Desired, name: str, version: str, reason: str) -> None:
        self._state.write(msgspec.structs.replace(desired, refused=desired.refused | {f"{name}/{version}": reason}))
        log.error("package refused", model=name, version=version, reason=reason)
        raise PackageRefused(f"model '{name}' version {version}: {reason}")

    def _follow(self) -> None:
        stamp = self._state.stamp()
        if stamp == self._stamp:
            return
        desired = self._state.read()
        failures = self._repository.serve(desired.models)
        if not desired.generation:
            failures["*"] = "nothing was decided yet, or the state folder is lost"
        self._progress = Progress(desired.generation, failures)
        self._member.report(self._progress)
        self._stamp = stamp
        for name, reason in self._progress.failures.items():
            log.error("model not loaded", model=name, reason=reason)

    def _follow_for_ever(self) -> None:
        while not self._stopped.wait(FOLLOW_SECONDS):
            try:
                self._follow()
            except Exception:
                log.exception("following the shared state failed")

    def _poll_for_ever(self) -> None:
        """Load what the repository has come to propose since the last change."""
        while not self._stopped.wait(self._poll_seconds):
            try:
                self._poll()
            except Exception:
                log.exception("polling the model repository failed")

    def _poll(self) -> None:
        desired = self._state.read()
        for name in self._repository.names():
            try:
                version = self._repository.choose(name)
                if version != desired.proposed.get(name) and f"{name}/{version}" not in desired.refused:
                    self.load(name, version)
            except TiercelError as error:
                log.warning("model not changed", model=name, reason=str(error))
