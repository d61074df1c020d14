"""Wires access control: settings in, who verifies and who issues out."""

from pathlib import Path
from typing import NamedTuple

from access_control.issuer import ALGORITHM, BuiltInIssuer, IssuerError
from access_control.jwks import OutsideIssuer
from access_control.tokens import Verifier
from inference_core.settings import Settings, SettingsError


class Access(NamedTuple):
    """`built_in` unless an outside issuer is trusted."""

    verifier: Verifier
    built_in: BuiltInIssuer | None


def check_issuer(settings: Settings) -> None:
    """SettingsError if the built-in issuer could not begin with what is in its folder."""
    if not settings.auth_jwks:
        try:
            _built_in(settings).read()
        except IssuerError as error:
            raise SettingsError(f"TIERCEL_AUTH_DIR: {error}") from None


def open_access(settings: Settings) -> Access:
    """Read the keys, and start the thread that keeps them up to date. Call it after the fork."""
    name, audience = settings.auth_issuer, settings.auth_audience
    if settings.auth_jwks:
        algorithms = tuple(settings.auth_algorithms.split(","))
        outside = OutsideIssuer(settings.auth_jwks, algorithms, Path(settings.state_dir))
        outside.start()
        return Access(Verifier(outside, name, audience, algorithms), None)
    built_in = _built_in(settings)
    built_in.start()
    return Access(Verifier(built_in, name, audience, (ALGORITHM,)), built_in)


def _built_in(settings: Settings) -> BuiltInIssuer:
    folder, lifetime = Path(settings.auth_dir), settings.auth_token_seconds
    return BuiltInIssuer(folder, settings.auth_issuer, settings.auth_audience, lifetime)
