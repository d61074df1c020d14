"""One model for three runtimes: built, served, and equal. Run by `make test-models`, which has PyTorch and LiteRT."""

import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
from model_zoo import Zoo, edit_manifest
from networks import Endless, Network, TwoOutputs
from recipes import FEATURES, RECIPE, rows, write_recipe
from servers import Server, wait_until

from command_line.main import main
from inference_core.errors import PackageRefused
from inference_core.manifest import MODEL_FILES, Manifest, TensorSpec, read_package
from inference_core.model import load_model
from model_tools.convert import convert
from model_tools.objects import read_rows
from model_tools.publish import describe, in_memory, publish
from model_tools.validate import Served, distance, run_all

DIGITS = Path(__file__).parents[2] / "models" / "digits"
RUNTIMES = ("torchscript", "litert")
BATCH = 64
ROWS = rows(20, seed=3)
INT8 = '[[passes]]\npass = "static-int8"\nleave_outputs_of = ["Gemm"]         # the logits stay FP32\n\n'


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in FP32, and exports of them."""
    models = tmp_path_factory.mktemp("runtimes") / "models"
    shutil.copytree(DIGITS, models / "digits", ignore=shutil.ignore_patterns("[0-9]*", "__pycache__"))
    path = models / "digits" / "recipe.toml"
    text = path.read_text()
    assert INT8 in text
    text = text.replace(INT8, "").replace("max_size_bytes = 200_000\n", "")
    path.write_text(f"exports = {list(RUNTIMES)}\n{text}")
    assert main(["build", str(path), "--models", str(models)]) is None
    return models


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    with Server(models, "llhttp", workers=1) as server:
        yield server


def held_out() -> Any:
    return read_rows("digits:held_out", DIGITS)[0]["image"]


def ask(server: Server, model: str, images: Any) -> Any:
    tensor = {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}
    answer = server.post(f"/v2/models/{model}/infer", {"inputs": [tensor]})
    assert answer.status == 200, answer
    [output] = answer.json()["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_variant_answers_as_onnx_does(server: Server, runtime: str) -> None:
    """Served by the real server: all held-out digits, a batch at once and one alone."""
    images = held_out()
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    for asked in (*batches, images[:1]):
        assert distance(ask(server, "digits", asked), ask(server, f"digits-{runtime}", asked)) < 1e-5


def test_the_server_says_what_runs_a_model(server: Server) -> None:
    """In the words of the protocol, and of Triton."""
    said = {
        name: (
            server.get(f"/v2/models/{name}").json()["platform"],
            server.get(f"/v2/models/{name}/config").json()["backend"],
        )
        for name in ("digits", "digits-torchscript", "digits-litert")
    }
    assert said == {
        "digits": ("onnxruntime_onnx", "onnxruntime"),
        "digits-torchscript": ("pytorch_torchscript", "pytorch"),
        "digits-litert": ("litert_tflite", "litert"),
    }


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_variant_can_be_loaded_anew(server: Server, runtime: str) -> None:
    """Tried in a process with limited memory first, which these libraries fit in."""
    name = f"digits-{runtime}"
    assert server.post(f"/v2/repository/models/{name}/unload", {}).status == 200
    assert server.get(f"/v2/models/{name}/ready").status != 200
    assert server.post(f"/v2/repository/models/{name}/load", {}).status == 200
    assert server.get(f"/v2/models/{name}/ready").status == 200


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_variant_was_held_to_the_source(models: Path, runtime: str) -> None:
    """As the ONNX package was, on the same rows; it has the same signature, and lineage of its own."""
    onnx = read_package(models / "digits" / "1", 1 << 20).manifest
    variant = read_package(models / f"digits-{runtime}" / "1", 1 << 20).manifest
    assert (variant.inputs, variant.outputs, variant.labels) == (onnx.inputs, onnx.outputs, onnx.labels)
    assert [step.name for step in variant.lineage] == ["source", "fold-preprocessing", runtime]
    assert variant.lineage[-1].model == variant.model
    assert variant.gate is not None
    assert variant.gate.rows == 450
    assert {check.what: check.at_most for check in variant.gate.checks}[
        f"distance from the source, batch {BATCH}"
    ] == 1e-4
    assert "torch" in variant.built


def test_a_file_depends_on_the_model_alone(tmp_path: Path) -> None:
    """Not on where its sources lie and what stands before them: to build again comes to the same package."""
    program = (
        "import hashlib, recipes, networks\n"
        "from model_tools.convert import convert\n"
        "model = convert('torchscript', networks.Network().eval(), {'x': recipes.rows(2, seed=0)}, ('p',))\n"
        "print(hashlib.sha256(model).hexdigest())\n"
    )
    sources = Path(networks.__file__).read_text()
    said = set()
    for comment in ("# one\n", "# one\n# two\n"):
        folder = tmp_path / str(len(comment))
        folder.mkdir()
        (folder / "networks.py").write_text(comment + sources)
        ran = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
        said.add(ran.stdout)
    assert len(said) == 1


def write(folder: Path, network: str, exports: str) -> Path:
    source = f'kind = "pytorch"\nfrom = "networks:{network}"\noutputs = ["p"]'
    recipe = RECIPE.replace('kind = "onnx"\nfrom = "blobs.onnx"', source)
    return write_recipe(folder, "[gate]\nmin_accuracy = 10\n", recipe=f"exports = {exports}\n{recipe}")


def test_an_export_that_differs_is_refused_and_nothing_is_published(tmp_path: Path) -> None:
    """Not the ONNX package either, which would have passed."""
    path = write(tmp_path, "OtherWhenTraced", '["torchscript"]')
    said = str(main(["build", str(path), "--models", str(tmp_path / "models")]))
    assert said.startswith(
        "tiercel: blobs/1 is not published: torchscript: "
        "distance from the source, batch 1: expected at most 0.0001, got 0."
    )
    assert not (tmp_path / "models").exists()


def test_a_variant_that_exists_with_other_content_holds_all_back(tmp_path: Path) -> None:
    """Or there would be half of what was built."""
    models = tmp_path / "models"
    folder = models / "blobs-torchscript" / "1"
    Zoo(models).scale("blobs-torchscript")
    assert folder.exists()
    path = write(tmp_path, "Network", '["torchscript"]')
    said = str(main(["build", str(path), "--models", str(models)]))
    assert said == "tiercel: blobs/1 is not published: blobs-torchscript/1: exists already, and with other content"
    assert not (models / "blobs").exists()


def manifest(runtime: str, content: bytes, **changes: Any) -> Manifest:
    parts = {
        "inputs": (TensorSpec("x", "FP32", (-1, FEATURES)),),
        "outputs": (TensorSpec("p", "FP32", (-1, 4)),),
    }
    return Manifest(
        name=runtime,
        version="1",
        description="",
        model=describe(content),
        max_batch_size=8,
        licence="Apache-2.0",
        source={},
        metrics={},
        built={},
        runtime=runtime,
        **(parts | changes),
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_several_inputs_and_outputs(runtime: str) -> None:
    """Each by its name, in whatever order the file has them."""
    feed = {"right": ROWS, "left": ROWS[::-1].copy()}
    model = convert(runtime, TwoOutputs(), feed, ("sum", "product"))
    shape = (-1, FEATURES)
    made = manifest(
        runtime,
        model,
        inputs=tuple(TensorSpec(name, "FP32", shape) for name in feed),
        outputs=tuple(TensorSpec(name, "FP32", shape) for name in ("sum", "product")),
    )
    got = run_all(Served(in_memory(made, model)), feed, ["product", "sum"], 8)
    assert np.array_equal(got["sum"], ROWS + ROWS[::-1])
    assert np.array_equal(got["product"], ROWS * ROWS[::-1])


class Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("datatype", "dtype"), [("INT64", np.int64), ("INT32", np.int32), ("FP32", np.float32)])
def test_datatypes_stay_as_they_are(runtime: str, datatype: str, dtype: type[np.generic]) -> None:
    """LiteRT's converter would make 32 bits of 64."""
    feed = {"x": np.arange(6, dtype=dtype).reshape(2, 3)}
    model = convert(runtime, Twice(), feed, ("y",))
    specs = {kind: (TensorSpec(name, datatype, (-1, 3)),) for kind, name in (("inputs", "x"), ("outputs", "y"))}
    got = run_all(Served(in_memory(manifest(runtime, model, **specs), model)), feed, ["y"], 2)
    assert np.array_equal(got["y"], 2 * feed["x"])


@pytest.mark.parametrize(
    ("runtime", "said"),
    [("torchscript", "model.pt: PyTorch refuses it: "), ("litert", "model.tflite: LiteRT refuses it: ")],
)
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_damaged_file_is_refused(runtime: str, said: str, share: float) -> None:
    """Garbage, or half of a model."""
    model = convert(runtime, Network().eval(), {"x": ROWS}, ("p",))
    damaged = model[: int(share * len(model))] + b"garbage" * 20
    with pytest.raises(PackageRefused, match=f"^{said}") as refused:
        load_model(in_memory(manifest(runtime, damaged), damaged), 1)
    assert "\n" not in str(refused.value)


def test_a_file_of_another_runtime_is_refused(zoo: Zoo) -> None:
    """Though a manifest says otherwise."""
    for runtime in RUNTIMES:
        folder = zoo.scale(runtime)
        (folder / "model.onnx").rename(folder / MODEL_FILES[runtime])
        edit_manifest(folder, runtime=runtime)
        with pytest.raises(PackageRefused, match=f"^{MODEL_FILES[runtime]}: .* refuses it: "):
            load_model(read_package(folder, 1 << 20), 1)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_an_endless_inference_is_the_watchdogs(tmp_path: Path) -> None:
    """PyTorch does not stop when told: the client gets 504 from the thread that watches, and the worker is replaced."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(Endless()), file)
    specs = {kind: (TensorSpec(name, "FP32", (-1, 3)),) for kind, name in (("inputs", "x"), ("outputs", "y"))}
    models = tmp_path / "models"
    publish(models, manifest("torchscript", file.getvalue(), **specs), file.getvalue())
    with Server(models, "llhttp", workers=1, hang_grace_ms=100) as server:
        [before] = server.workers()
        body = {"instances": [[1, 2, 3]]}
        assert server.post("/v1/models/torchscript:predict", body, X_Request_Timeout_Ms="200").status == 504
        wait_until(lambda: server.workers() not in ([], [before]), "another worker is there")
        wait_until(server.is_ready, "it serves")
        answer = server.post("/v1/models/torchscript:predict", {"instances": [[-1, -2, -3]]})
        assert answer.json()["predictions"] == [[-2, -4, -6]]
    assert "inference hangs: this worker is replaced" in server.log()
