"""The model repository as one process sees it: which packages exist on disk, and which it has loaded.

<root>/<name>/<version>/    packages, see manifest.py
<root>/<name>/model.toml    the model's policy, see policy.py
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from inference_core.batching import gains
from inference_core.errors import NotFound, PackageRefused, TiercelError, Unavailable
from inference_core.manifest import Package, is_name, is_version, read_package
from inference_core.model import Model
from inference_core.policy import Policy, read_policy

log = structlog.get_logger()


class Repository:
    """`load` makes a warm model of a package; `max_bytes` bounds the model file; `keys_file`: see `read_package`.

    `batches`: whether predictions can be run as one here.
    """

    def __init__(
        self,
        root: Path,
        load: Callable[[Package], Model],
        max_bytes: int,
        keys_file: str = "",
        *,
        batches: bool = False,
    ) -> None:
        self.root = root
        self.keys_file = keys_file
        self._load = load
        self._max_bytes = max_bytes
        self._batches = batches
        self._models: dict[str, Model] = {}

    def get(self, name: str, version: str | None = None) -> Model:
        """The loaded model `name`; `version`, when given, must be the one that is loaded."""
        model = self._models.get(name)
        if model is None:
            if name not in self.names():
                raise NotFound(f"model '{name}': expected one of {self.names()}")
            raise Unavailable(f"model '{name}': is not loaded")
        if version is not None and version != model.manifest.version:
            raise NotFound(f"model '{name}': expected version {model.manifest.version}, which is loaded, got {version}")
        return model

    def loaded(self) -> list[Model]:
        return [self._models[name] for name in sorted(self._models)]

    def serve(self, versions: Mapping[str, str | None]) -> dict[str, str]:
        """Load what `versions` names (None: unload) and is not loaded yet; return why each failure failed, by name.

        A model keeps answering until the one that replaces it is warm, and goes on if that one is refused.
        """
        failures = {}
        for name, version in versions.items():
            if version is None:
                self._models.pop(name, None)
                continue
            try:
                self._serve(name, version)
            except TiercelError as error:
                failures[name] = f"version {version}: {error}"
        return failures

    def _serve(self, name: str, version: str) -> None:
        model = self._models.get(name)
        if model is None or model.manifest.version != version:
            policy = self.policy(name)
            model = self._load(read_package(self.folder(name, version), self._max_bytes, self.keys_file))
            model.policy = policy
            # Before it serves anybody: only one inference is ever under way.
            if self._batches and policy.batching == "auto":
                model.gains = gains(model)
                log.info("predictions are run as one if that saves time", model=name, saves=model.gains)
            self._models[name] = model
            return
        try:
            model.policy = self.policy(name)
        except PackageRefused as error:  # of a model that nobody has asked to change: it goes on as before
            log.warning("a model's policy is not taken up", model=name, reason=str(error))

    def names(self) -> list[str]:
        """Every model with at least one version on disk."""
        folders = [path for path in self.root.iterdir() if is_name(path.name) and path.is_dir()]
        return sorted(folder.name for folder in folders if self.versions(folder.name))

    def versions(self, name: str) -> list[str]:
        """The versions of model `name` on disk, oldest first."""
        folder = self.root / name
        if not is_name(name) or not folder.is_dir():
            return []
        return sorted((path.name for path in folder.iterdir() if is_version(path.name) and path.is_dir()), key=int)

    def folder(self, name: str, version: str) -> Path:
        """Where a version's package lies; NotFound if there is none."""
        if version not in self.versions(name):
            raise NotFound(f"model '{name}': expected one of the versions {self.versions(name)}, got {version}")
        return self.root / name / version

    def choose(self, name: str) -> str:
        """The version to serve: the one that the model's policy pins, else the newest."""
        versions = self.versions(name)
        if not versions:
            raise NotFound(f"model '{name}': expected one of {self.names()}")
        return self.policy(name).version or versions[-1]

    def policy(self, name: str) -> Policy:
        return read_policy(self.root / name)
