"""`tiercel inspect`, `verify`, `diff`, `benchmark` and `predict`, on packages and on a real server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from batch import RED, photo
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from model_zoo import Zoo, edit_manifest
from recipes import rows, write_recipe
from servers import Server
from signing import public_pem, sign

from command_line.main import main

Run = Callable[..., list[str]]
INSTANCES = b'{"instances": [[1, 2, 3], [4, 5, 6]]}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    zoo = Zoo(tmp_path_factory.mktemp("served") / "models")
    zoo.scale()
    zoo.colour()
    with Server(zoo.root, "llhttp", workers=1) as server:
        yield server


@pytest.fixture
def models(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}/v1/models"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The lines that a command prints; fails where it fails."""

    def run(*arguments: object) -> list[str]:
        assert main([*map(str, arguments)]) is None
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def built(tmp_path: Path, run: Run) -> Path:
    """A package that `tiercel build` has made."""
    path = write_recipe(tmp_path, '[[passes]]\npass = "optimise"\n[gate]\nmin_accuracy = 90\n')
    run("build", path, "--models", tmp_path / "built")
    return tmp_path / "built" / "blobs" / "1"


def test_a_package_is_described(built: Path, run: Run) -> None:
    """What it is, how it came about, what it was good for."""
    said = run("inspect", built)
    assert "signed           no" in said
    assert "name             blobs" in said
    assert any(line.startswith("gate             passed on 200 rows, ") for line in said)
    assert any(line.split()[0] == "optimise" and line.endswith('"nodes_before":4,"nodes":4}') for line in said)
    assert any(line.split()[:2] == ["accuracy", "100"] and line.endswith("%, at least 90") for line in said)


def test_a_package_without_a_gate_says_so(zoo: Zoo, run: Run) -> None:
    folder = sign(zoo.scale(), Ed25519PrivateKey.generate(), gate=None)
    said = run("inspect", folder)
    assert "gate             none" in said
    assert "signed           yes; `tiercel verify --keys` says by whom" in said


def test_a_served_model_is_described(models: str, run: Run) -> None:
    said = run("inspect", f"{models}/scale")
    assert "name             scale" in said
    assert "state            READY" in said


def test_sound_packages_are_verified(zoo: Zoo, run: Run) -> None:
    """By their folders, wherever one stands."""
    folders = zoo.scale(), zoo.named()
    assert run("verify", *folders) == [f"{folder}: whole; answers" for folder in folders]


def test_signatures_are_verified(zoo: Zoo, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With keys on the command line, or those of the server's own setting."""
    key, keys = Ed25519PrivateKey.generate(), tmp_path / "keys.pem"
    keys.write_bytes(public_pem(key))
    signed, unsigned = sign(zoo.scale(), key), zoo.named()
    assert run("verify", "--keys", keys, signed) == [f"{signed}: whole, signed and gated; answers"]
    assert str(main(["verify", str(unsigned), "--keys", str(keys)])) == (
        f"tiercel: {unsigned}: manifest.sig: expected a signature: No such file or directory"
    )
    monkeypatch.setenv("TIERCEL_STRICT_KEYS_FILE", str(keys))
    assert str(main(["verify", str(unsigned)])).startswith(f"tiercel: {unsigned}: manifest.sig: ")


def test_what_was_tampered_with_is_refused(zoo: Zoo, capsys: pytest.CaptureFixture[str]) -> None:
    """The first that is not sound ends it, with its folder and the reason."""
    sound, tampered, garbage = zoo.scale(), zoo.named(), zoo.garbage("garbage")
    path = tampered / "model.onnx"
    path.write_bytes(path.read_bytes()[::-1])
    said = str(main(["verify", str(sound), str(tampered)]))
    assert said.startswith(f"tiercel: {tampered}: model.onnx: expected SHA-256 ")
    assert capsys.readouterr().out == f"{sound}: whole; answers\n"
    assert str(main(["verify", str(garbage)])).startswith(f"tiercel: {garbage}: model.onnx: ONNX Runtime refuses it: ")


def test_differences_are_listed(zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of what packages say, and of what they answer to the same rows."""
    one, other = zoo.scale(), zoo.scale(version=2, factor=2.5)
    np.savez(tmp_path / "rows.npz", x=np.ones((10, 3), np.float32))
    assert main(["diff", str(one), str(other), "--rows", str(tmp_path / "rows.npz")]) == 1
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert found.keys() == {"digest", "model.sha256", "version", "distance", "agreement"}
    assert found["version"] == "1 -> 2"
    assert found["distance"] == "of y                            0.25"


def test_a_package_is_no_different_from_itself(zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(zoo.scale())
    assert main(["diff", folder, folder]) == 0
    assert capsys.readouterr().out == ""
    np.savez(tmp_path / "rows.npz", x=np.ones((10, 3), np.float32))
    assert main(["diff", folder, folder, "--rows", str(tmp_path / "rows.npz")]) == 0
    assert capsys.readouterr().out.split() == ["distance", "of", "y", "0", "agreement", "of", "y", "100.00", "%"]


def test_a_package_and_what_is_served_are_compared(zoo: Zoo, models: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By what both say; the same package has the same digest."""
    folder = zoo.scale()
    assert main(["diff", str(folder), f"{models}/scale"]) == 0
    assert main(["diff", f"{models}/colour", str(zoo.colour())]) == 0, "which has labels"
    edit_manifest(folder, description="another")
    assert main(["diff", f"{models}/scale", str(folder)]) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["description", "digest"]


def test_rows_must_be_for_both(zoo: Zoo, built: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=rows(4, seed=0))
    said = main(["diff", str(zoo.scale()), str(built), "--rows", str(tmp_path / "rows.npz")])
    assert said == "tiercel: rows: expected packages with the same inputs and an output that both have"


@pytest.mark.parametrize("where", ["folder", "server"])
def test_instances_are_predicted(where: str, zoo: Zoo, models: str, tmp_path: Path, run: Run) -> None:
    """The same from the folder and from the server."""
    (tmp_path / "rows.json").write_bytes(INSTANCES)
    target = zoo.scale() if where == "folder" else f"{models}/scale"
    answer = json.loads("\n".join(run("predict", target, tmp_path / "rows.json")))
    assert answer["predictions"] == [[2, 4, 6], [8, 10, 12]]
    assert answer["model"]["name"] == "scale"


@pytest.mark.parametrize("where", ["folder", "server"])
def test_a_photo_is_predicted(where: str, zoo: Zoo, models: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "red.png").write_bytes(photo(RED))
    target = zoo.colour() if where == "folder" else f"{models}/colour"
    answer = json.loads("\n".join(run("predict", target, tmp_path / "red.png")))
    assert answer["predictions"][0]["label"] == "red"


def test_latencies_are_measured_side_by_side(zoo: Zoo, models: str, tmp_path: Path, run: Run) -> None:
    """Of packages alone, of packages with decoding, and of servers."""
    (tmp_path / "rows.json").write_bytes(INSTANCES)
    folder, url = zoo.scale(), f"{models}/scale"
    [head, line] = run("benchmark", folder, "--rounds", 3)
    assert head.split()[:6] == ["p50", "ms", "p90", "ms", "p99", "ms"]
    assert line.startswith(f"{folder} ")
    lines = run("benchmark", folder, url, "--file", tmp_path / "rows.json", "--rounds", 3)
    assert [line.split()[0] for line in lines[1:]] == [str(folder), url]
    assert all(float(figure) > 0 for line in lines[1:] for figure in line.split()[1:])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "/nowhere/1"], "manifest.json: No such file or directory"),
        (["predict", "{models}/nothing", "{file}"], "404 Not Found: model 'nothing': expected one of "),
        (["predict", "{models}/scale", "/nowhere"], "[Errno 2] No such file"),
        (["benchmark", "{models}/scale"], "{models}/scale: expected --file, what to ask a server, got none"),
    ],
)
def test_what_cannot_be_done_is_explained(arguments: list[str], said: str, models: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(INSTANCES)
    values = {"models": models, "file": tmp_path / "rows.json"}
    assert str(main([text.format(**values) for text in arguments])).startswith(f"tiercel: {said.format(**values)}")


def test_a_report_is_written(built: Path, tmp_path: Path, run: Run) -> None:
    """About the packages that are given, into a file."""
    page = tmp_path / "page.html"
    assert run("report", built, "--output", page) == [str(page)]
    assert "blobs/1" in page.read_text()
