"""`tiercel token`: an access token for whoever can read the built-in issuer's folder, without a client or a secret."""

import argparse
import os
from pathlib import Path
from typing import Any

import msgspec

from access_control.clients import OPERATOR, SCOPES, Scope
from access_control.issuer import BuiltInIssuer, IssuerError
from inference_core.settings import SettingsError, read_settings


def add_to(commands: Any) -> None:
    parser = commands.add_parser("token", help="an access token for the operator", description=__doc__)
    parser.add_argument("scope", nargs="+", help=f"some of {', '.join(SCOPES)}; for one model, such as predict:MODEL")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> str | None:
    try:
        scopes = msgspec.convert(options.scope, list[Scope])
        settings = read_settings(os.environ)
        if not settings.auth_dir:
            return "tiercel: expected the issuer's folder in TIERCEL_AUTH_DIR, got none"
        folder, lifetime = Path(settings.auth_dir), settings.auth_token_seconds
        issuer = BuiltInIssuer(folder, settings.auth_issuer, settings.auth_audience, lifetime)
        issuer.read()
    except (SettingsError, IssuerError, msgspec.ValidationError) as error:
        return f"tiercel: {error}"  # sys.exit prints a string and exits with 1
    print(issuer.sign(OPERATOR, " ".join(scopes))[0].access_token)
    return None
