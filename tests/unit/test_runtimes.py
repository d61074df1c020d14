"""Which runtime a package gets, and what the two optional ones are asked to do, by stand-ins for their libraries."""

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from model_zoo import Zoo, edit_manifest

from inference_core.errors import DeadlineExceeded, InferenceFailed, PackageRefused
from inference_core.manifest import MODEL_FILES, read_package
from inference_core.model import Model, RunOptions, load_model
from inference_core.runtimes import NEEDS
from inference_core.watchdog import Watchdog

ROWS = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


def package(zoo: Zoo, runtime: str, **changes: Any) -> Path:
    """The package `scale`, FP32 [-1, 3] x to y, whose file is said to be one of `runtime`."""
    folder = zoo.scale()
    (folder / "model.onnx").rename(folder / MODEL_FILES[runtime])
    edit_manifest(folder, runtime=runtime, **changes)
    return folder


def load(folder: Path, threads: int = 1) -> Model:
    return load_model(read_package(folder, 1 << 20), threads)


def refusal(folder: Path) -> str:
    with pytest.raises(PackageRefused) as refused:
        load(folder)
    return str(refused.value)


def spec(name: str, shape: list[int], datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


class Tensor(np.ndarray):
    """As much of `torch.Tensor` as is used."""

    def numpy(self, *, force: bool) -> np.ndarray:
        return np.asarray(self)


class Parameter(NamedTuple):
    name: str

    def has_default_value(self) -> bool:
        return False


class Doubles:
    """A TorchScript module of one parameter, which it overwrites."""

    forward = SimpleNamespace(schema=SimpleNamespace(arguments=[Parameter("self"), Parameter("a")]))

    def eval(self) -> "Doubles":
        return self

    def __call__(self, x: Tensor) -> Any:
        x *= 2
        return x


class Torch(ModuleType):
    """PyTorch that has one module to load, and notes what it was told."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.__version__ = "2"
        self.module: Any = Doubles()
        self.told: list[tuple[str, int]] = []
        self.jit = SimpleNamespace(load=self._load)
        self.inference_mode = contextlib.nullcontext

    def _load(self, file: Any, map_location: str) -> Any:
        if isinstance(self.module, Exception):
            raise self.module
        return self.module

    def set_num_threads(self, count: int) -> None:
        self.told.append(("intra", count))

    def set_num_interop_threads(self, count: int) -> None:
        self.told.append(("inter", count))
        raise RuntimeError("it has started already")

    def tensor(self, array: Any) -> Tensor:
        return np.array(array).view(Tensor)


class Interpreter:
    """LiteRT's, of a graph that doubles `x` into `y`, once it has been laid out for an input of that shape."""

    batch = -1
    signatures: tuple[str, ...] = ("serving_default",)
    made: list[dict[str, Any]] = []  # noqa: RUF012  # emptied by the fixture
    laid_out: list[tuple[int, ...]] = []  # noqa: RUF012  # as above

    def __init__(self, **options: Any) -> None:
        if options["model_content"] == b"garbage":
            raise ValueError("Model provided has model identifier 'bage'\nand more")
        self.made.append(options)
        self._shape: tuple[int, ...] = ()
        self._x = self._y = np.zeros(0)

    def get_signature_list(self) -> dict[str, Any]:
        return dict.fromkeys(self.signatures)

    def get_signature_runner(self, name: str) -> "Interpreter":
        return self

    def get_input_details(self) -> Any:
        return self._details("x", 0)

    def get_output_details(self) -> Any:
        return self._details("y", 1)

    def _details(self, name: str, index: int) -> Any:
        shape = np.array([self.batch, 3])
        tensor = {"name": name, "index": index, "dtype": np.float32, "shape_signature": shape}
        return {name: tensor} if self.signatures else [tensor]

    def resize_tensor_input(self, index: int, shape: tuple[int, ...]) -> None:
        if shape[0] > 100 or self.batch == 1 != shape[0]:
            raise RuntimeError("too large")
        self._shape = shape

    def allocate_tensors(self) -> None:
        self.laid_out.append(self._shape)

    def set_tensor(self, index: int, array: Any) -> None:
        assert array.shape == self._shape
        self._x = array

    def invoke(self) -> None:
        self._y = 2 * self._x

    def get_tensor(self, index: int) -> Any:
        return self._y


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Torch]:
    monkeypatch.delitem(sys.modules, "inference_core.runtimes.torchscript", raising=False)
    monkeypatch.setitem(sys.modules, "torch", Torch())
    yield sys.modules["torch"]  # type: ignore[misc]
    sys.modules.pop("inference_core.runtimes.torchscript", None)


@pytest.fixture
def litert(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Interpreter]]:
    interpreter: type[Interpreter] = type("Interpreter", (Interpreter,), {"made": [], "laid_out": []})
    library, module = ModuleType("ai_edge_litert"), ModuleType("ai_edge_litert.interpreter")
    library.__version__ = "2"  # type: ignore[attr-defined]
    module.Interpreter = interpreter  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "inference_core.runtimes.litert", raising=False)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", library)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)
    yield interpreter
    sys.modules.pop("inference_core.runtimes.litert", None)


@pytest.mark.parametrize("runtime", NEEDS)
def test_a_runtime_that_is_not_installed_is_named(runtime: str, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the way to get it."""
    monkeypatch.delitem(sys.modules, f"inference_core.runtimes.{runtime}", raising=False)
    for library in ("torch", "ai_edge_litert"):
        monkeypatch.setitem(sys.modules, library, None)
    assert refusal(package(zoo, runtime)).startswith(
        f"{MODEL_FILES[runtime]}: expected {NEEDS[runtime]}, which is not installed: pip install 'tiercel[{runtime}]' ("
    )


@pytest.mark.parametrize("runtime", NEEDS)
def test_a_runtime_that_lacks_a_library_costs_no_other_model(
    runtime: str, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch says so with an OSError."""
    for library in ("torch", "ai_edge_litert"):
        (tmp_path / f"{library}.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')")
        monkeypatch.delitem(sys.modules, library, raising=False)
    monkeypatch.delitem(sys.modules, f"inference_core.runtimes.{runtime}", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "(libgomp.so.1: cannot open shared object file)" in refusal(package(zoo, runtime))


def test_each_optional_runtime_has_its_extra() -> None:
    """Of the name by which manifests call it."""
    assert MODEL_FILES.keys() == {"onnx", *NEEDS}


def test_a_runtime_that_nobody_knows_is_refused(zoo: Zoo) -> None:
    """With those there are."""
    folder = zoo.scale()
    edit_manifest(folder, runtime="tensorrt")
    with pytest.raises(PackageRefused, match=r"^manifest\.json: .*\(onnx\|torchscript\|litert\).*`\$\.runtime`$"):
        read_package(folder, 1 << 20)


@pytest.mark.parametrize("runtime", NEEDS)
def test_the_file_is_the_runtimes(runtime: str, zoo: Zoo) -> None:
    """Another is not looked at, and this one is checked as any model is."""
    folder = package(zoo, runtime)
    assert read_package(folder, 1 << 20).manifest.runtime == runtime
    path = folder / MODEL_FILES[runtime]
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(PackageRefused, match=rf"^{path.name}: expected SHA-256 "):
        read_package(folder, 1 << 20)
    path.rename(folder / "model.onnx")
    with pytest.raises(PackageRefused, match=rf"^{path.name}: expected \d+ bytes"):
        read_package(folder, 1 << 20)


def test_a_manifest_of_onnx_says_nothing_of_it(zoo: Zoo) -> None:
    """Those that were published before there was a choice are as they were."""
    folder = zoo.scale()
    assert "runtime" not in json.loads((folder / "manifest.json").read_text())
    assert read_package(folder, 1 << 20).manifest.model_file == "model.onnx"


def test_torchscript_answers(zoo: Zoo, torch: Torch) -> None:
    """In the thread plan's threads, and leaving alone what it was given."""
    model, rows = load(package(zoo, "torchscript"), threads=3), ROWS.copy()
    rows.flags.writeable = False
    [y] = model.run({"x": rows}, ["y"], RunOptions())
    assert y.tolist() == (2 * ROWS).tolist()
    assert torch.told == [("intra", 3), ("inter", 1)]
    assert model.fingerprint == f"{model.digest} torch-2"


def test_outputs_of_torchscript_come_in_the_manifests_order(zoo: Zoo, torch: Torch) -> None:
    """And go in the order in which they are wanted."""

    class Both(Doubles):
        def __call__(self, x: Tensor) -> Any:
            return x + 1, x - 1

    torch.module = Both()
    model = load(package(zoo, "torchscript", outputs=[spec("more", [-1, 3]), spec("less", [-1, 3])]))
    less, more = model.run({"x": ROWS}, ["less", "more"], RunOptions())
    assert (more - less).tolist() == np.full((2, 3), 2).tolist()


class Single(Doubles):
    def __call__(self, x: Tensor) -> Any:
        return np.array(x.sum()).view(Tensor)


class Wide(Doubles):
    def __call__(self, x: Tensor) -> Any:
        return x.astype(np.float64)


class Pair(Doubles):
    def __call__(self, x: Tensor) -> Any:
        return x, x


class Failing(Doubles):
    def __call__(self, x: Tensor) -> Any:
        raise RuntimeError("The following operation failed.\n  x + 1\nRuntimeError: no such operator")


@pytest.mark.parametrize(
    ("module", "changes", "said"),
    [
        (RuntimeError("long story\nfile is damaged\n"), {}, "model.pt: PyTorch refuses it: file is damaged"),
        (
            Doubles(),
            {"inputs": [spec("x", [-1, 3]), spec("z", [-1, 3])]},
            "inputs: expected ['x', 'z'] as in the manifest, got ['a']",
        ),
        (Doubles(), {"inputs": [spec("x", [-1, 3], "BF16")]}, "'x': expected one of BOOL, "),
        (Doubles(), {"outputs": [spec("y", [-1, 4])]}, "output 'y': expected shape [1, 4], got [1, 3]"),
        (Wide(), {}, "output 'y': expected FP32, got float64"),
        (Pair(), {}, "model.pt: fails on a warm-up input of zeros: model scale: "),
        (Single(), {}, "output 'y': expected shape [1, 3], got []"),
        (Failing(), {}, "model.pt: fails on a warm-up input of zeros: model scale: RuntimeError: no such operator"),
    ],
)
def test_torchscript_that_does_not_fit_is_refused(
    module: Any, changes: dict[str, Any], said: str, zoo: Zoo, torch: Torch
) -> None:
    """Damaged, of another signature, or failing: with the reason."""
    torch.module = module
    assert refusal(package(zoo, "torchscript", **changes)).startswith(said)


def test_litert_answers_for_batches_of_any_size(zoo: Zoo, litert: type[Interpreter]) -> None:
    """It is laid out anew only when another size comes, and after one was too large."""
    model = load(package(zoo, "litert"), threads=3)
    for count in (2, 2, 1):
        [y] = model.run({"x": ROWS[:count]}, ["y"], RunOptions())
        assert y.tolist() == (2 * ROWS[:count]).tolist()
    with pytest.raises(InferenceFailed, match=r"^model scale: too large$"):
        model.run({"x": np.zeros((101, 3), np.float32)}, None, RunOptions())
    model.run({"x": ROWS[:1]}, None, RunOptions())
    assert litert.laid_out == [(1, 3), (2, 3), (1, 3), (1, 3)]
    assert litert.made[0]["num_threads"] == 3
    assert model.fingerprint == f"{model.digest} litert-2"


def test_litert_for_one_row_is_asked_row_by_row(zoo: Zoo, litert: type[Interpreter]) -> None:
    """Which is what such files mostly are; their manifest may have batches all the same."""
    litert.batch = 1
    [y] = load(package(zoo, "litert")).run({"x": ROWS}, None, RunOptions())
    assert y.tolist() == (2 * ROWS).tolist()
    assert litert.laid_out == [(1, 3)]


def test_litert_without_a_signature_has_names_of_its_own(zoo: Zoo, litert: type[Interpreter]) -> None:
    """Those of its tensors."""
    litert.signatures = ()
    [y] = load(package(zoo, "litert")).run({"x": ROWS}, None, RunOptions())
    assert y.tolist() == (2 * ROWS).tolist()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": [spec("z", [-1, 3])]}, "inputs: expected ['z'] as in the manifest, got ['x']"),
        ({"inputs": [spec("x", [-1, 3], "FP64")]}, "input 'x': expected FP64 as in the manifest, got FP32"),
        ({"outputs": [spec("y", [-1, 4])]}, "output 'y': expected shape [-1, 4] as in the manifest, got [-1, 3]"),
    ],
)
def test_litert_of_another_signature_is_refused(
    changes: dict[str, Any], said: str, zoo: Zoo, litert: type[Interpreter]
) -> None:
    assert refusal(package(zoo, "litert", **changes)) == said


def test_litert_with_several_signatures_is_refused(zoo: Zoo, litert: type[Interpreter]) -> None:
    """Which of them is meant, nothing says."""
    litert.signatures = ("encode", "decode")
    assert refusal(package(zoo, "litert")) == (
        "model.tflite: LiteRT refuses it: expected one signature, got ['encode', 'decode']"
    )


def test_damaged_litert_is_refused(zoo: Zoo, litert: type[Interpreter]) -> None:
    """In one line."""
    folder = zoo.garbage("garbage")
    (folder / "model.onnx").rename(folder / "model.tflite")
    edit_manifest(folder, runtime="litert")
    assert refusal(folder) == "model.tflite: LiteRT refuses it: Model provided has model identifier 'bage'"


@pytest.mark.usefixtures("torch", "litert")
@pytest.mark.parametrize("runtime", NEEDS)
def test_an_answer_after_the_deadline_is_none(runtime: str, zoo: Zoo) -> None:
    """These runtimes do not stop when told; what comes out then is late, and not sent."""
    model, options = load(package(zoo, runtime)), RunOptions()
    options.terminate = True
    with pytest.raises(DeadlineExceeded, match=r"^model scale: stopped at the deadline$"):
        model.run({"x": ROWS}, None, options)


def test_a_hang_of_another_runtime_is_the_watchdogs(zoo: Zoo, torch: Torch) -> None:
    """Told to stop, it goes on; so after the grace the process ends."""
    let_go, hangs = threading.Event(), threading.Event()

    class Hanging(Doubles):
        def __call__(self, x: Tensor) -> Any:
            if x.any():
                hangs.set()
                let_go.wait(10)
            return x

    torch.module = Hanging()
    model, ended, abandoned = load(package(zoo, "torchscript")), [], []
    watchdog = Watchdog(grace=1.0, end_process=ended.append)
    with watchdog.watch(deadline=100.0, abandon=abandoned.append) as call:

        def predict() -> None:
            with contextlib.suppress(DeadlineExceeded):
                model.run({"x": ROWS}, None, call.options)

        thread = threading.Thread(target=predict)
        thread.start()
        assert hangs.wait(10)
        watchdog.check(100.5)
        assert (call.options.terminate, ended) == (True, [])
        watchdog.check(101.5)
        assert (ended, abandoned) == ([70], [True])
    let_go.set()
    thread.join()
