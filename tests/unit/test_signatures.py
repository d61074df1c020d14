"""Strict mode: what is not signed by who may publish, or has passed no gate, is not served."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from model_zoo import Zoo, edit_manifest
from signing import GATE, private_pem, public_pem, sign

from inference_core.errors import PackageRefused
from inference_core.manifest import read_package, verify_package
from inference_core.probe import try_package
from inference_core.signatures import MAX_KEYS_BYTES, read_keys

MAX_BYTES = 1 << 20
KEY, OTHER_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


@pytest.fixture
def keys(tmp_path: Path) -> str:
    """A file with KEY's public half, behind another's."""
    path = tmp_path / "keys.pem"
    path.write_bytes(public_pem(Ed25519PrivateKey.generate(), KEY))
    return str(path)


def test_a_signed_and_gated_package_is_served(zoo: Zoo, keys: str) -> None:
    """Read whole, looked at, or tried in a process of its own."""
    folder = sign(zoo.scale(), KEY)
    assert read_package(folder, MAX_BYTES, keys) == read_package(folder, MAX_BYTES)
    verify_package(folder, MAX_BYTES, keys)
    try_package(folder, MAX_BYTES, 20, keys)


def test_openssl_agrees(zoo: Zoo, tmp_path: Path) -> None:
    """The signature is what the documentation says, to a program that is not ours."""
    folder, key = sign(zoo.scale(), KEY), tmp_path / "key.pem"
    key.write_bytes(public_pem(KEY))
    files = ["-inkey", str(key), "-in", str(folder / "manifest.json"), "-sigfile", str(folder / "manifest.sig")]
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", *files]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    edit_manifest(folder, description="altered")
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0


def unsigned(folder: Path) -> None:
    edit_manifest(folder, gate=GATE)


def signed_by_another(folder: Path) -> None:
    sign(folder, OTHER_KEY)


def altered(folder: Path) -> None:
    sign(folder, KEY)
    edit_manifest(folder, max_batch_size=8)


def with_another_model(folder: Path) -> None:
    sign(folder, KEY)
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[::-1])


def ungated(folder: Path) -> None:
    sign(folder, KEY, gate=None)


def beyond_its_budget(folder: Path) -> None:
    sign(folder, KEY, gate=GATE | {"checks": [{"what": "accuracy", "figure": 90.0, "at_least": 97.0}]})


def longer(folder: Path) -> None:
    path = sign(folder, KEY) / "manifest.sig"
    path.write_bytes(path.read_bytes() + b"x")


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (unsigned, r"^manifest\.sig: expected a signature: No such file or directory$"),
    (signed_by_another, r"^manifest\.sig: expected the signature of the manifest by a key in .*keys\.pem$"),
    (altered, r"^manifest\.sig: expected the signature of the manifest"),
    (longer, r"^manifest\.sig: expected the signature of the manifest"),
    (with_another_model, r"^model\.onnx: expected SHA-256 "),
    (ungated, r"^manifest\.json: gate: expected what `tiercel build` measured, got nothing$"),
    (beyond_its_budget, r"^manifest\.json: gate: accuracy of 90 is not within its budget$"),
]


@pytest.mark.parametrize(("spoil", "said"), REFUSED)
@pytest.mark.parametrize("how", [read_package, verify_package])
def test_what_is_not_is_refused(
    spoil: Callable[[Path], None], said: str, how: Callable[[Path, int, str], object], zoo: Zoo, keys: str
) -> None:
    """With the reason, however it is read."""
    folder = zoo.scale()
    spoil(folder)
    with pytest.raises(PackageRefused, match=said):
        how(folder, MAX_BYTES, keys)


def test_the_trial_in_a_process_of_its_own_is_strict(zoo: Zoo, keys: str) -> None:
    folder = zoo.scale()
    unsigned(folder)
    with pytest.raises(PackageRefused, match=r"^manifest\.sig: expected a signature"):
        try_package(folder, MAX_BYTES, 20, keys)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"expected public keys \(PEM, Ed25519\), found none"),
        (private_pem(KEY), r"expected public keys \(PEM, Ed25519\), found none"),
        (public_pem(generate_private_key(SECP256R1())), "expected public keys of Ed25519, got one of another kind"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", r"expected public keys \(PEM, Ed25519\): "),
        (public_pem(KEY).ljust(MAX_KEYS_BYTES + 1), f"expected at most {MAX_KEYS_BYTES} bytes, got more"),
    ],
)
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "keys.pem"
    path.write_bytes(content)
    with pytest.raises(PackageRefused, match=f"^{path}: {said}"):
        read_keys(str(path))


def test_keys_may_be_as_long_as_they_may(tmp_path: Path) -> None:
    path = tmp_path / "keys.pem"
    path.write_bytes(public_pem(KEY, OTHER_KEY).ljust(MAX_KEYS_BYTES))
    assert len(read_keys(str(path))) == 2


def test_keys_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(PackageRefused, match="nowhere: expected public keys: No such file"):
        read_keys(str(tmp_path / "nowhere"))
