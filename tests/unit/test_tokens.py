"""Which access tokens are good, by the keys that there are, and what is remembered of them."""

import threading
from typing import Any

import jwt
import pytest
import tokens
from tokens import (
    ALGORITHMS,
    ATTACKS,
    AUDIENCE,
    ISSUER,
    UNKNOWN,
    Clock,
    Fixed,
    claims,
    of_header_size,
    of_size,
    repeats,
    signer,
    trusted,
    written,
)

from access_control import tokens as module
from access_control.tokens import LEEWAY, MAX_HEADER_CHARS, MAX_TOKEN_CHARS, Caller, Verifier
from inference_core.errors import Unauthenticated, Unavailable


@pytest.fixture
def issuer() -> Fixed:
    """Who has a key for each algorithm."""
    return Fixed(trusted())


@pytest.fixture
def verifier(issuer: Fixed) -> Verifier:
    return Verifier(issuer, ISSUER, AUDIENCE, ALGORITHMS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch, module, tokens)


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens so far whose signatures were verified."""
    decode, seen = jwt.decode, []

    def spy(token: str, *args: Any, **options: Any) -> Any:
        seen.append(token)
        return decode(token, *args, **options)

    monkeypatch.setattr(jwt, "decode", spy)
    return seen


def refused(verifier: Verifier, token: str) -> str:
    """The reason for which it is."""
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify(token)
    assert str(caught.value) == f"access token: {caught.value.reason}"
    return caught.value.reason


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_good_token_says_who_asks(verifier: Verifier, issuer: Fixed, algorithm: str) -> None:
    token = signer(algorithm).token(sub="anna", client_id="app", scope="predict models:read:scale", exp=2_000_000_000)
    expected = Caller("anna", "app", frozenset({"predict", "models:read:scale"}), 2_000_000_000 + LEEWAY)
    assert verifier.verify(token) == expected
    assert issuer.asked == 0


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_for_what_it_is(verifier: Verifier, issuer: Fixed, name: str) -> None:
    """Each time. Keys are asked for if an unknown one is named in due form, and for nothing else."""
    token = ATTACKS[name].make()
    reason = refused(verifier, token)
    assert reason.startswith(ATTACKS[name].because)
    assert not repeats(reason, token)
    assert issuer.asked == (ATTACKS[name].because == UNKNOWN)
    assert refused(verifier, token) == reason
    assert not verifier._memory.callers


@pytest.mark.parametrize(
    "token",
    [
        lambda: signer().token(aud=["other", AUDIENCE]),
        lambda: signer().token(aud=[AUDIENCE]),
        lambda: signer().token(exp=claims()["exp"] + 0.5),
        lambda: signer().token(nbf=claims()["iat"]),
        lambda: signer().token(sub="s" * 256, jti="j" * 256, client_id="c" * 256, scope="s" * 4096),
        lambda: signer().token(sub="Zoë \U0001f985", more={"nested": [None, 1.5]}, jku="https://attacker.test"),
        lambda: written(signer().header(typ="application/at+jwt"), claims(), signer().sign),
        lambda: written(signer().header(typ="AT+JWT"), claims(), signer().sign),
        lambda: written(signer().header(more="anything"), claims(), signer().sign),
        lambda: of_header_size(MAX_HEADER_CHARS),
        lambda: of_size(MAX_TOKEN_CHARS),
    ],
)
def test_what_a_good_token_may_have(verifier: Verifier, token: Any) -> None:
    """At each bound, and with what does not concern us."""
    assert verifier.verify(token()).client.startswith("c")


def test_a_key_may_have_an_id_of_64_characters(verifier: Verifier, issuer: Fixed) -> None:
    own = signer("ES256", "k" * 64)
    issuer.trusted = trusted(own)
    assert verifier.verify(own.token()).subject == "somebody"


@pytest.mark.parametrize(("algorithm", "others"), [("ES256", ("EdDSA", "RS256")), ("RS256", ("ES256", "EdDSA"))])
def test_an_algorithm_that_is_not_configured_is_refused(issuer: Fixed, algorithm: str, others: tuple[str, ...]) -> None:
    """Whatever keys the issuer has."""
    verifier = Verifier(issuer, ISSUER, AUDIENCE, (algorithm,))
    assert verifier.verify(signer(algorithm).token())
    for other in others:
        assert refused(verifier, signer(other).token()) == f"expected {algorithm}, got {other!r}"


@pytest.mark.parametrize(
    ("claim", "offset", "reason"),
    [
        ("exp", 1 - LEEWAY, None),
        ("exp", -LEEWAY, "it has expired"),
        ("nbf", LEEWAY, None),
        ("nbf", LEEWAY + 1, "it is not valid yet"),
        ("iat", LEEWAY, None),
        ("iat", LEEWAY + 1, "it is not valid yet"),
    ],
)
def test_clocks_may_differ_a_little(
    verifier: Verifier, clock: Clock, claim: str, offset: int, reason: str | None
) -> None:
    """By the leeway, and not by a second more."""
    token = signer().token(**{claim: int(clock.now) + offset})
    if reason:
        assert refused(verifier, token) == reason
    else:
        assert verifier.verify(token)


def test_a_token_is_verified_once_until_it_expires(verifier: Verifier, clock: Clock, verified: list[str]) -> None:
    """And then refused, to the moment."""
    token = signer().token(exp=int(clock.now) + 600)
    first = verifier.verify(token)
    clock.now += 600 + LEEWAY - 0.001
    assert verifier.verify(token) is first
    assert verified == [token]
    clock.now += 0.001
    assert refused(verifier, token) == "it has expired"
    assert refused(verifier, token) == "it has expired"


def test_tokens_are_remembered_each_for_itself(verifier: Verifier, verified: list[str]) -> None:
    both = [signer().token(sub=name) for name in ("anna", "bert")]
    for _ in range(3):
        assert [verifier.verify(token).subject for token in both] == ["anna", "bert"]
    assert verified == both


def test_a_key_that_was_removed_ends_its_tokens(verifier: Verifier, issuer: Fixed) -> None:
    """Also those that were remembered; those of a key that stays go on."""
    old, new = signer("ES256"), signer("ES256", "next")
    issuer.trusted = trusted(old, new)
    tokens = [each.token() for each in (old, new)]
    assert all(map(verifier.verify, tokens))
    issuer.trusted = trusted(new)
    assert refused(verifier, tokens[0]) == UNKNOWN
    assert verifier.verify(tokens[1])


def test_another_key_of_the_same_id_ends_its_tokens(verifier: Verifier, issuer: Fixed) -> None:
    token = signer().token()
    assert verifier.verify(token)
    issuer.trusted = module.Trusted({signer().id: signer("ES256", "next").key})
    assert refused(verifier, token) == "its signature is wrong"


def test_a_client_that_was_revoked_ends_its_tokens(verifier: Verifier, issuer: Fixed) -> None:
    token = signer().token(client_id="app")
    issuer.trusted = trusted(clients={"app": 0, "other": 0})
    assert verifier.verify(token)
    issuer.trusted = trusted(clients={"other": 0})
    assert refused(verifier, token) == "its client has been revoked"


def test_a_client_has_no_tokens_from_before_it_was_added(verifier: Verifier, issuer: Fixed, clock: Clock) -> None:
    """Nobody has any of a client that was revoked and added again."""
    issuer.trusted = trusted(clients={"client": clock.now})
    assert verifier.verify(signer().token(iat=clock.now - LEEWAY))
    assert refused(verifier, signer().token(iat=clock.now - LEEWAY - 1)) == "its client has been revoked"


def test_what_is_verified_while_its_key_is_removed_is_not_remembered(
    verifier: Verifier, issuer: Fixed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is judged by the keys that there were when it came, and the next time by those that there are."""
    old, new = signer("ES256"), signer("ES256", "next")
    issuer.trusted = trusted(old)
    decode = jwt.decode

    def decode_meanwhile(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(jwt, "decode", decode)
        issuer.trusted = trusted(new)
        assert verifier.verify(new.token())
        return decode(*args, **options)

    monkeypatch.setattr(jwt, "decode", decode_meanwhile)
    token = old.token()
    assert verifier.verify(token)
    assert refused(verifier, token) == UNKNOWN


def test_without_keys_nobody_can_say(verifier: Verifier, issuer: Fixed) -> None:
    """Unavailable, which is no fault of who asks; nor is what was known before still known."""
    token = signer().token()
    assert verifier.verify(token)
    known, issuer.trusted = issuer.trusted, None
    with pytest.raises(Unavailable, match="the issuer's keys are not known yet"):
        verifier.verify(token)
    issuer.trusted = known
    assert verifier.verify(token)


def test_no_more_is_remembered_than_allowed(
    verifier: Verifier, verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one more, what has been there for the longest is forgotten."""
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    tokens = [signer().token(sub=f"{number}") for number in range(4)]
    for token in tokens[:3] * 2:
        verifier.verify(token)
    assert verified == tokens[:3], "all are remembered"
    verifier.verify(tokens[3])
    assert len(verifier._memory.callers) == 3
    for token in tokens[1:]:
        verifier.verify(token)
    assert verified == tokens
    assert verifier.verify(tokens[0]).subject == "0"
    assert verified == [*tokens, tokens[0]]


def test_threads_may_verify_while_keys_change(
    verifier: Verifier, issuer: Fixed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets the answer to its own question, and no more is remembered than allowed."""
    monkeypatch.setattr(module, "MAX_REMEMBERED", 5)
    tokens = {f"{number}": signer("EdDSA").token(sub=f"{number}") for number in range(20)}
    wrong: list[Any] = []

    def verify() -> None:
        for _ in range(5):
            for name, token in tokens.items():
                try:
                    if verifier.verify(token).subject != name:
                        wrong.append(name)
                except Exception as error:
                    wrong.append(error)

    threads = [threading.Thread(target=verify) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        issuer.trusted = trusted()
    assert wrong == []
    assert len(verifier._memory.callers) <= 5


@pytest.mark.parametrize(
    ("scopes", "scope", "model", "may"),
    [
        ("predict", "predict", None, True),
        ("predict", "predict", "scale", True),
        ("predict:scale", "predict", "scale", True),
        ("predict:scale", "predict", "scale2", False),
        ("predict:scale", "predict", "", False),
        ("predict:scale", "predict", None, False),
        ("predict:scale", "models:read", "scale", False),
        ("models:read models:admin", "predict", "scale", False),
        ("models", "models:read", "scale", False),
        ("Predict predict:", "predict", "scale", False),
        ("predict:*", "predict", "scale", False),
        ("", "predict", "scale", False),
    ],
)
def test_a_scope_is_for_all_models_or_for_one(scopes: str, scope: str, model: str | None, may: bool) -> None:
    caller = Caller("somebody", "client", frozenset(scopes.split()), 0)
    assert caller.may(scope, model) == may
