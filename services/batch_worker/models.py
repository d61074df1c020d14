"""The models that this worker has loaded: what jobs last asked for, each in the version that its job is pinned to."""

from collections import OrderedDict
from collections.abc import Callable

from inference_core.errors import PackageRefused
from inference_core.jobs import Job
from inference_core.manifest import Package, read_package
from inference_core.model import Model
from inference_core.repository import Repository

MAX_LOADED = 3


class Models:
    def __init__(self, repository: Repository, load: Callable[[Package], Model], max_bytes: int) -> None:
        self._repository = repository
        self._load = load
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[str, Model] = OrderedDict()

    def get(self, job: Job) -> Model:
        """The model that was served when the job was accepted; NotFound or PackageRefused if it is gone."""
        model = self._loaded.get(job.digest)
        if model is None:
            folder = self._repository.folder(job.model, job.version)
            package = read_package(folder, self._max_bytes, self._repository.keys_file)
            if package.digest != job.digest:
                was = f"version {job.version} as it was when the job was accepted"
                raise PackageRefused(f"model {job.model}: expected {was}, got another package")
            model = self._loaded[job.digest] = self._load(package)
        self._loaded.move_to_end(job.digest)
        while len(self._loaded) > MAX_LOADED:
            self._loaded.popitem(last=False)
        return model
