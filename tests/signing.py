"""Keys for tests, and packages that are signed with them."""

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from model_zoo import edit_manifest

from inference_core.signatures import SIGNATURE_FILE

GATE = {"checks": [{"what": "accuracy", "figure": 98.0, "at_least": 97.0}], "rows": 10, "processor": "x86_64"}


def public_pem(*keys: Any) -> bytes:
    return b"".join(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in keys)


def private_pem(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def sign(folder: Path, key: Ed25519PrivateKey, **changes: Any) -> Path:
    """Sign the package in `folder` after these changes of its manifest; it has passed a gate unless they say else."""
    edit_manifest(folder, **({"gate": GATE} | changes))
    (folder / SIGNATURE_FILE).write_bytes(key.sign((folder / "manifest.json").read_bytes()))
    return folder
