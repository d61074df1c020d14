"""What an access token costs the road of a request: the first time, and whenever it comes again.

python loadtest/access_tokens.py
"""

import itertools
import sys
import time
import timeit
from types import SimpleNamespace
from typing import Any

import jwt
import report
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from access_control.tokens import ALGORITHMS, Key, Trusted, Verifier
from inference_api.authorisation import Authorisation

ISSUER, AUDIENCE = "https://issuer.example", "tiercel"
REPEATS, REPEATED, FIRST = 7, 20_000, 300
PATH, SCOPE = "/v2/models/{model}/infer", "predict"


def main() -> int:
    private: dict[str, Any] = {
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        "RS256": rsa.generate_private_key(65537, 2048),
    }
    rows = [measure(algorithm, private[algorithm]) for algorithm in ALGORITHMS]
    print(report.table(["algorithm", "first us", "again us", "whole, again us"], rows))
    return 0


def measure(algorithm: str, key: Any) -> list[str]:
    trusted = Trusted({"key": Key(algorithm, key.public_key())})
    issuer = SimpleNamespace(trusted=trusted, look_for_keys=lambda: None)
    verifier = Verifier(issuer, ISSUER, AUDIENCE, ALGORITHMS)
    numbers = itertools.count()
    fresh = iter([token(algorithm, key, next(numbers)) for _ in range(REPEATS * FIRST)])
    first = best(lambda: verifier.verify(next(fresh)), FIRST)
    known = token(algorithm, key, next(numbers))
    again = best(lambda: verifier.verify(known), REPEATED)
    authorisation = Authorisation(verifier, {PATH: SCOPE})
    request: Any = SimpleNamespace(uri_template=PATH, env={"HTTP_AUTHORIZATION": f"Bearer {known}"})
    params = {"model": "breast-cancer"}
    whole = best(lambda: authorisation.process_resource(request, None, None, params), REPEATED)  # type: ignore[arg-type]  # it reads no answer
    return [algorithm, f"{first:.0f}", f"{again:.2f}", f"{whole:.2f}"]


def best(call: Any, number: int) -> float:
    """Microseconds of one call, in the best of several rounds."""
    return min(timeit.repeat(call, repeat=REPEATS, number=number)) / number * 1e6


def token(algorithm: str, key: Any, number: int) -> str:
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "client",
        "client_id": "client",
        "iat": now,
        "exp": now + 3600,
        "jti": str(number),
        "scope": "predict models:read",
    }
    return jwt.encode(claims, key, algorithm, headers={"typ": "at+jwt", "kid": "key"})


if __name__ == "__main__":
    sys.exit(main())
