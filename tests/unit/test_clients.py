"""The file of clients: what it may say, who may be in it, and that nothing of it is lost."""

import hashlib
import json
import multiprocessing
import threading
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from access_control import clients as module
from access_control.clients import (
    MAX_SCOPE_CHARS,
    SCOPES,
    ClientError,
    add_client,
    hashed,
    is_secret_of,
    read_clients,
    revoke_client,
)

NOW = "2026-01-01T00:00:00+00:00"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clients.json"


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that cost nothing, where the tests are not about them."""
    monkeypatch.setattr(module, "hashed", lambda secret: f"scrypt$16384$8$1${'a' * 22}==${'a' * 43}=")


def test_a_client_has_a_secret_that_only_its_hash_is_kept_of(path: Path) -> None:
    secret = add_client(path, "app", ("predict", "models:read:scale"))
    assert len(secret) == 43, "256 bits"
    assert secret not in path.read_text()
    [client] = read_clients(path).values()
    assert (client.id, client.scopes) == ("app", ("predict", "models:read:scale"))
    assert is_secret_of(client, secret)
    for other in (secret[:-1], secret + "a", secret.swapcase(), "", client.secret):
        assert not is_secret_of(client, other)
    assert timedelta() <= datetime.now(UTC) - client.created < timedelta(minutes=1)


def test_a_hash_is_scrypt_with_a_salt_of_its_own() -> None:
    """RFC 7914 with OWASP's cost, as the standard library computes it."""
    first, second = hashed("secret"), hashed("secret")
    assert first != second
    kind, cost, block, parallel, salt, digest = first.split("$")
    assert (kind, cost, block, parallel) == ("scrypt", "16384", "8", "1")
    assert hashlib.scrypt(b"secret", salt=b64decode(salt), n=1 << 14, r=8, p=1, dklen=32) == b64decode(digest)


def test_nobody_costs_as_much_as_somebody(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """SECURITY: or the time of an answer would tell which clients there are."""
    add_client(path, "app", ("predict",))
    asked, scrypt = [], hashlib.scrypt

    def spy(password: bytes, **cost: Any) -> bytes:
        asked.append({name: value for name, value in cost.items() if name != "salt"})
        return scrypt(password, **cost)

    monkeypatch.setattr(hashlib, "scrypt", spy)
    assert not is_secret_of(read_clients(path)["app"], "wrong")
    assert not is_secret_of(None, "wrong")
    assert asked[0] == asked[1]


def test_a_harder_hash_is_understood(path: Path) -> None:
    """For who wants to pay more for it."""
    salt, digest = b"s" * 16, hashlib.scrypt(b"secret", salt=b"s" * 16, n=1 << 15, r=8, p=2, maxmem=1 << 26, dklen=32)
    edit(path, secret=f"scrypt$32768$8$2${b64encode(salt).decode()}${b64encode(digest).decode()}")
    assert is_secret_of(read_clients(path)["app"], "secret")


def edit(path: Path, **changes: Any) -> None:
    """A file with one client, which is in order but for `changes`; what is ... is left out."""
    client = {
        "id": "app",
        "secret": f"scrypt$16384$8$1${'a' * 22}==${'a' * 43}=",
        "scopes": ["predict"],
        "created": NOW,
    }
    values = {name: value for name, value in (client | changes).items() if value is not ...}
    path.write_text(json.dumps([values]))


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ...},
        {"id": ""},
        {"id": "a/b"},
        {"id": "app\n"},
        {"id": "a" * 65},
        {"secret": ...},
        {"secret": "in clear text"},
        {"secret": f"scrypt$1024$8$1${'a' * 22}==${'a' * 43}="},
        {"secret": f"scrypt$262144$8$1${'a' * 22}==${'a' * 43}="},
        {"secret": f"scrypt$16384$8$5${'a' * 22}==${'a' * 43}="},
        {"secret": f"scrypt$16384$8$1$${'a' * 43}="},
        {"secret": f"scrypt$16384$8$1${'a' * 22}==${'a' * 43}=\n"},
        {"scopes": ...},
        {"scopes": []},
        {"scopes": "predict"},
        {"scopes": ["predict", "everything"]},
        {"scopes": ["predict models:admin"]},
        {"scopes": ["predict:"]},
        {"scopes": ["predict:a:b"]},
        {"created": ...},
        {"created": 5},
        {"created": "yesterday"},
        {"created": "2026-01-01T00:00:00"},
        {"role": "admin"},
    ],
    ids=str,
)
def test_a_file_that_says_what_it_may_not_is_named(path: Path, changes: dict[str, Any]) -> None:
    """And nobody changes it."""
    edit(path, **changes)
    before = path.read_bytes()
    for use in (read_clients, lambda path: add_client(path, "b", ("predict",)), lambda path: revoke_client(path, "b")):
        with pytest.raises(ClientError, match=f"^{path}: expected a list of clients: "):
            use(path)
    assert path.read_bytes() == before


def test_a_secret_in_clear_text_is_not_told(path: Path) -> None:
    """SECURITY: errors end up in logs."""
    edit(path, secret="hunter2")  # noqa: S106  # as somebody may
    with pytest.raises(ClientError) as refused:
        read_clients(path)
    assert "hunter2" not in str(refused.value)


def test_there_is_no_file_to_read(path: Path) -> None:
    with pytest.raises(ClientError, match="No such file"):
        read_clients(path)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("name", ["a", "A.b_c-9", "a" * 64])
@pytest.mark.parametrize("scope", [*SCOPES, "predict:m", "models:admin:" + "m" * 64])
def test_names_and_scopes_that_fit(path: Path, name: str, scope: str) -> None:
    add_client(path, name, (scope,))
    assert read_clients(path)[name].scopes == (scope,)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("name", "scopes"),
    [
        ("", ("predict",)),
        ("a b", ("predict",)),
        ("a:b", ("predict",)),
        ("-a", ("predict",)),
        ("ä", ("predict",)),
        ("a" * 65, ("predict",)),
        ("../a", ("predict",)),
        ("a", ()),
        ("a", ("",)),
        ("a", ("everything",)),
        ("a", ("predict:*",)),
        ("a", ("predict:" + "m" * 65,)),
        ("a", ("PREDICT",)),
    ],
)
def test_names_and_scopes_that_do_not_fit(path: Path, name: str, scopes: tuple[str, ...]) -> None:
    """The message names the client, and the scopes that there are."""
    with pytest.raises(ClientError, match=r"^client '.*': .*scopes are predict, .*, or such as predict:MODEL$"):
        add_client(path, name, scopes)
    assert not path.exists()


def test_there_is_an_operator_already(path: Path) -> None:
    with pytest.raises(ClientError, match=r"^client 'operator': is whoever can read this folder"):
        add_client(path, "operator", ("predict",))


@pytest.mark.usefixtures("cheap")
def test_the_scopes_of_a_client_are_bounded(path: Path) -> None:
    """They are in its tokens, which go in a header."""
    most = [f"predict:{'m' * 55}"] * 32
    assert len(" ".join(most)) == MAX_SCOPE_CHARS - 1
    add_client(path, "app", tuple(most))
    with pytest.raises(ClientError, match=f"^client 'more': expected scopes of {MAX_SCOPE_CHARS} characters at most"):
        add_client(path, "more", (*most[1:], f"predict:{'m' * 57}"))


@pytest.mark.usefixtures("cheap")
def test_a_client_is_not_replaced(path: Path) -> None:
    """Who has its secret keeps it."""
    add_client(path, "app", ("predict",))
    before = path.read_bytes()
    with pytest.raises(ClientError, match=r"^client 'app': there is one already; revoke it first$"):
        add_client(path, "app", ("models:admin",))
    assert path.read_bytes() == before


@pytest.mark.usefixtures("cheap")
def test_a_client_is_revoked(path: Path) -> None:
    for name in ("one", "two", "three"):
        add_client(path, name, ("predict",))
    revoke_client(path, "two")
    assert list(read_clients(path)) == ["one", "three"]
    with pytest.raises(ClientError, match=r"^client 'two': there is none; there are one, three$"):
        revoke_client(path, "two")


def test_of_no_clients_none_is_revoked(path: Path) -> None:
    with pytest.raises(ClientError, match=r"^client 'app': there is none; there are none at all$"):
        revoke_client(path, "app")


@pytest.mark.usefixtures("cheap")
def test_the_file_is_for_its_owner_only(path: Path) -> None:
    """Also after it has been changed, and after one that was left half-written."""
    path.with_suffix(".new").touch(mode=0o666)
    for name in ("one", "two"):
        add_client(path, name, ("predict",))
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("cheap")
def test_who_reads_meanwhile_finds_it_whole(path: Path) -> None:
    """A file that was opened before stays as it was: another takes its name."""
    add_client(path, "one", ("predict",))
    with path.open() as file:
        add_client(path, "two", ("predict",))
        assert len(json.load(file)) == 1
    assert len(read_clients(path)) == 2


def _add_some(path: Path, number: int) -> None:
    for i in range(5):
        add_client(path, f"client-{number}-{i}", ("predict",))


def test_whoever_adds_at_once_loses_nothing(path: Path) -> None:
    """Processes and threads, each with clients of its own."""
    context = multiprocessing.get_context("forkserver")
    adders: list[Any] = [context.Process(target=_add_some, args=(path, number)) for number in range(2)]
    adders += [threading.Thread(target=_add_some, args=(path, number)) for number in range(2, 4)]
    for adder in adders:
        adder.start()
    for adder in adders:
        adder.join()
    assert read_clients(path).keys() == {f"client-{number}-{i}" for number in range(4) for i in range(5)}
