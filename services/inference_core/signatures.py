"""Who published a package: `manifest.sig`, an Ed25519 signature (RFC 8032) of `manifest.json`, 64 bytes.

The manifest has the SHA-256 of the model, so that what is signed is both. Any other program can check it:

    openssl pkeyutl -verify -rawin -pubin -inkey keys.pem -in manifest.json -sigfile manifest.sig
"""

import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from inference_core.errors import PackageRefused

SIGNATURE_FILE = "manifest.sig"
SIGNATURE_BYTES = 64
MAX_KEYS_BYTES = 1 << 16
PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


def check_signature(folder: Path, manifest: bytes, keys_file: str) -> None:
    """PackageRefused unless the package in `folder`, whose manifest is that, was signed with a key in the file."""
    try:
        with (folder / SIGNATURE_FILE).open("rb") as file:
            signature = file.read(SIGNATURE_BYTES + 1)
    except OSError as error:
        raise PackageRefused(f"{SIGNATURE_FILE}: expected a signature: {error.strerror}") from None
    keys = read_keys(keys_file)
    if not any(_is_of(key, signature, manifest) for key in keys):
        raise PackageRefused(f"{SIGNATURE_FILE}: expected the signature of the manifest by a key in {keys_file}")


def read_keys(path: str) -> list[Ed25519PublicKey]:
    """The keys in a file of PEM blocks, of which whoever has one may publish; PackageRefused if there is none."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_KEYS_BYTES + 1)
    except OSError as error:
        raise PackageRefused(f"{path}: expected public keys: {error.strerror}") from None
    if len(text) > MAX_KEYS_BYTES:
        raise PackageRefused(f"{path}: expected at most {MAX_KEYS_BYTES} bytes, got more")
    keys = [_load(block, path) for block in PEM.findall(text)]
    if not keys:
        raise PackageRefused(f"{path}: expected public keys (PEM, Ed25519), found none")
    return keys


def _load(block: bytes, path: str) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(block)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PackageRefused(f"{path}: expected public keys (PEM, Ed25519): {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise PackageRefused(f"{path}: expected public keys of Ed25519, got one of another kind")
    return key


def _is_of(key: Ed25519PublicKey, signature: bytes, manifest: bytes) -> bool:
    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        return False
    return True
