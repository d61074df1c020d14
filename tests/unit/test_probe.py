from pathlib import Path

import pytest
from model_zoo import Zoo, edit_manifest

from inference_core.errors import PackageRefused
from inference_core.probe import try_package

MAX_BYTES = 1 << 20


def try_it(folder: Path, seconds: float = 20) -> None:
    try_package(folder, MAX_BYTES, seconds)


def test_a_sound_package_passes(zoo: Zoo) -> None:
    """A package that loads and answers is no reason to raise anything."""
    try_it(zoo.scale())


def test_an_unsound_package_is_refused_with_the_reason(zoo: Zoo) -> None:
    """The reason comes back from the process in which the package was tried, whatever characters it has."""
    folder = zoo.scale()
    edit_manifest(folder, outputs=[{"name": "\N{SNOWMAN}", "datatype": "FP32", "shape": [-1, 3]}])
    with pytest.raises(PackageRefused, match=r"^outputs: expected \['\N{SNOWMAN}'\] as in the manifest, got \['y'\]$"):
        try_it(folder)


def test_a_long_reason_is_a_reason(zoo: Zoo) -> None:
    """A package cannot hold up the trial with what there is to say about it."""
    folder = zoo.scale()
    outputs = [{"name": f"{i:0200}", "datatype": "FP32", "shape": [-1, 3]} for i in range(1000)]
    edit_manifest(folder, outputs=outputs)
    with pytest.raises(PackageRefused, match=r"^outputs: expected "):
        try_it(folder)


def test_a_package_without_end_is_refused(zoo: Zoo) -> None:
    """A load that takes too long is ended; the process is gone when the answer comes."""
    with pytest.raises(PackageRefused, match=r"^model\.onnx: expected to load within 0\.01 s, got no end$"):
        try_it(zoo.scale(), 0.01)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("kill -SEGV $$", r"crashes the runtime that loads it \(SIGSEGV\)"),
        ("kill -KILL $$", r"crashes the runtime that loads it \(SIGKILL\)"),
        ("exit 7", "the trial load ended with status 7"),
    ],
)
def test_a_crash_is_a_reason(
    program: str, said: str, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that takes its process down is refused, and the server goes on."""
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{program}\n")
    fake.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(fake))
    with pytest.raises(PackageRefused, match=rf"^model\.onnx: {said}$"):
        try_it(zoo.scale())
