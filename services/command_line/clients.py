"""`tiercel clients`: who may get access tokens from the built-in issuer. A running API follows within two seconds."""

import argparse
import os
from pathlib import Path
from typing import Any

from access_control.clients import SCOPES, ClientError, add_client, read_clients, revoke_client
from inference_core.settings import SettingsError, read_settings


def add_to(commands: Any) -> None:
    parser = commands.add_parser("clients", help="who may get access tokens", description=__doc__)
    parser.add_argument("--dir", type=Path, help="the issuer's folder, instead of TIERCEL_AUTH_DIR")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    add = actions.add_parser("add", help="a new client; prints its secret, once")
    add.add_argument("id")
    add.add_argument("scope", nargs="+", help=f"some of {', '.join(SCOPES)}; for one model, such as predict:MODEL")
    add.set_defaults(run=lambda options: _run(_add, options))
    listed = actions.add_parser("list", help="all clients and their scopes")
    listed.set_defaults(run=lambda options: _run(_list, options))
    revoke = actions.add_parser("revoke", help="strike a client off; its tokens end as well")
    revoke.add_argument("id")
    revoke.set_defaults(run=lambda options: _run(_revoke, options))


def _run(action: Any, options: argparse.Namespace) -> str | None:
    try:
        folder = options.dir or read_settings(os.environ).auth_dir
        if not folder:
            return "tiercel: expected the issuer's folder as --dir or TIERCEL_AUTH_DIR, got neither"
        action(Path(folder) / "clients.json", options)
    except (ClientError, SettingsError, OSError) as error:
        return f"tiercel: {error}"  # sys.exit prints a string and exits with 1
    return None


def _add(path: Path, options: argparse.Namespace) -> None:
    print(f"client_id      {options.id}\nclient_secret  {add_client(path, options.id, tuple(options.scope))}")


def _list(path: Path, options: argparse.Namespace) -> None:
    for client in read_clients(path).values() if path.exists() else ():
        print(f"{client.id:24} {client.created.isoformat()}  {' '.join(client.scopes)}")


def _revoke(path: Path, options: argparse.Namespace) -> None:
    revoke_client(path, options.id)
    print(f"revoked {options.id}")
