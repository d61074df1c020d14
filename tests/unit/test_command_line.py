"""`tiercel clients` and `tiercel token`, as an operator types them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tokens import AUDIENCE, issuer_folder, signer

from access_control.clients import is_secret_of, read_clients
from access_control.issuer import BuiltInIssuer
from access_control.tokens import Verifier
from command_line.main import main

Run = Callable[..., list[str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The issuer's, as the environment says."""
    folder = tmp_path / "issuer"
    folder.mkdir()
    monkeypatch.setenv("TIERCEL_AUTH_DIR", str(folder))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The lines that a command prints; fails where it fails."""

    def run(*arguments: str) -> list[str]:
        assert main([*arguments]) is None
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out.splitlines()

    return run


def test_a_client_is_added_listed_and_revoked(folder: Path, run: Run) -> None:
    [first, second] = run("clients", "add", "app", "predict", "models:read:scale")
    assert first == "client_id      app"
    secret = second.removeprefix("client_secret  ")
    client = read_clients(folder / "clients.json")["app"]
    assert is_secret_of(client, secret)
    [line] = run("clients", "list")
    assert line.split() == ["app", client.created.isoformat(), "predict", "models:read:scale"]
    assert secret not in line
    assert run("clients", "revoke", "app") == ["revoked app"]
    assert run("clients", "list") == []


def test_the_folder_may_be_given(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says."""
    monkeypatch.setenv("TIERCEL_AUTH_DIR", "/nowhere")
    run("clients", "--dir", str(tmp_path), "add", "app", "predict")
    assert [line.split()[0] for line in run("clients", "--dir", str(tmp_path), "list")] == ["app"]
    assert (tmp_path / "clients.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "app", "predict"], "client 'app': there is one already; revoke it first"),
        (["revoke", "other"], "client 'other': there is none; there are app"),
        (["add", "a b", "predict"], "client 'a b': "),
        (["add", "other", "everything"], "client 'other': "),
        (["--dir", "/nowhere", "add", "other", "predict"], "[Errno 2] No such file or directory: '/nowhere/clients"),
    ],
)
def test_what_cannot_be_done_is_explained(folder: Path, run: Run, arguments: list[str], said: str) -> None:
    """In one line, which is the exit's; nothing is changed."""
    run("clients", "add", "app", "predict")
    before = (folder / "clients.json").read_bytes()
    assert str(main(["clients", *arguments])).startswith(f"tiercel: {said}")
    assert (folder / "clients.json").read_bytes() == before


@pytest.mark.parametrize("arguments", [["list"], ["add", "app", "predict"], ["revoke", "app"]])
def test_a_damaged_file_is_named(folder: Path, arguments: list[str]) -> None:
    path = folder / "clients.json"
    path.write_text("{}")
    assert str(main(["clients", *arguments])).startswith(f"tiercel: {path}: expected a list of clients: ")
    assert path.read_text() == "{}"


@pytest.mark.parametrize("arguments", [["clients", "list"], ["token", "predict"]])
def test_without_a_folder_nothing_can_be_done(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIERCEL_AUTH_DIR", raising=False)
    said = str(main(arguments))
    assert said.startswith("tiercel: expected the issuer's folder ")
    assert "TIERCEL_AUTH_DIR" in said


@pytest.mark.parametrize("arguments", [["clients", "list"], ["token", "predict"]])
def test_a_setting_that_does_not_fit_is_named(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERCEL_AUTH", "perhaps")
    assert main(arguments) == "tiercel: TIERCEL_AUTH: expected off or required, got 'perhaps'"


@pytest.mark.parametrize(
    "arguments",
    [[], ["clients"], ["clients", "add"], ["clients", "add", "app"], ["clients", "drop", "app"], ["token"], ["tokens"]],
)
def test_what_is_no_command_is_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().err.startswith("usage: tiercel ")


def test_the_operator_has_a_token_without_a_secret(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """For whatever scopes, with the settings that the API has."""
    issuer_folder(tmp_path / "issuer", signer())
    variables = {"DIR": f"{tmp_path}/issuer", "ISSUER": "https://api.test", "TOKEN_SECONDS": "60"}
    for name, value in variables.items():
        monkeypatch.setenv(f"TIERCEL_AUTH_{name}", value)
    [token] = run("token", "models:admin", "predict:scale")
    issuer = BuiltInIssuer(tmp_path / "issuer", "https://api.test", AUDIENCE, 900)
    issuer.read()
    caller = Verifier(issuer, "https://api.test", AUDIENCE, ("ES256",)).verify(token)
    assert (caller.subject, sorted(caller.scopes)) == ("operator", ["models:admin", "predict:scale"])


@pytest.mark.parametrize("scope", ["everything", "", "predict:", "predict models:admin"])
def test_the_operator_asks_for_what_there_is(folder: Path, scope: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(main(["token", scope])).startswith("tiercel: ")
    assert capsys.readouterr().out == ""


def test_without_a_key_there_is_no_token(folder: Path) -> None:
    assert main(["token", "predict"]) == (f"tiercel: {folder}/signing_keys: expected a key, NAME.pem, found none")


def test_it_is_a_program(folder: Path) -> None:
    """What it prints can be read by others; what went wrong is on standard error, with an exit code."""

    def run(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "command_line.main", *arguments]
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    code, printed, wrong = run("clients", "add", "app", "predict")
    assert (code, wrong) == (0, "")
    assert printed.startswith("client_id      app\nclient_secret  ")
    assert run("clients", "revoke", "b") == (1, "", "tiercel: client 'b': there is none; there are app\n")
