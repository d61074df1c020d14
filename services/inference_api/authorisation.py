"""Who may do what: the one place where that is decided. `app.routes` is the table, a scope for each route.

No route is reached without a rule, and what has none is an error of ours. Challenges are those of RFC 6750.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import falcon

from inference_core.errors import Forbidden, InvalidInput, Unauthenticated

if TYPE_CHECKING:  # PERF: cryptography takes a quarter of a server's start, where there are no tokens for nothing
    from access_control.tokens import Caller, Verifier

# For everybody: health checks, descriptions of the API, and where tokens come from.
PUBLIC = ""
# In WSGI's environment: the Caller, where access tokens are required.
CALLER = "tiercel.caller"
REALM = 'Bearer realm="tiercel"'
BEARER = re.compile(r"bearer +([^ ]+)", re.IGNORECASE)
# SECURITY: what may not stand between quotes in a header (RFC 6750, section 3).
UNQUOTABLE = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")


class Route(NamedTuple):
    """`scope`: what a token must have for it, or PUBLIC. A model's own scope will do, such as predict:breast-cancer.

    Where the path does not say which model it is about, `:*` stands for any, and the resource asks `authorise`.
    """

    path: str
    resource: Any
    scope: str


class Authorisation:
    """`rules`: the scope that a request for a path template needs."""

    def __init__(self, verifier: "Verifier", rules: Mapping[str, str]) -> None:
        self._verifier = verifier
        self._rules = rules

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: object, params: Mapping[str, str]
    ) -> None:
        scope = self._rules[req.uri_template or ""]
        if scope == PUBLIC:
            return
        caller = self._verifier.verify(self._token(req, resp))
        if not caller.may(scope, params.get("model")):
            raise Forbidden(f"access token: expected scope {scope}, got {scopes(caller)}", scope, caller.subject)
        req.env[CALLER] = caller

    @staticmethod
    def _token(req: falcon.Request, resp: falcon.Response) -> str:
        try:
            return bearer(req.env)
        except InvalidInput:
            resp.set_header("WWW-Authenticate", f'{REALM}, error="invalid_request"')
            raise


def authorise(env: Mapping[str, Any], scope: str, model: str) -> None:
    """For who learns only from the body which model it is about: Forbidden unless the caller has `scope` for it."""
    caller: Caller | None = env.get(CALLER)
    if caller and not caller.may(scope, model):
        raise Forbidden(f"access token: expected scope {scope}, got {scopes(caller)}", scope, caller.subject)


def bearer(env: Mapping[str, Any]) -> str:
    """The access token of a request: in the header and nowhere else (RFC 9700, section 4.3.2)."""
    given: str | None = env.get("HTTP_AUTHORIZATION")
    if given is None:
        raise Unauthenticated("access token: expected one as Authorization: Bearer TOKEN, got none")
    if given.startswith("Bearer ") and " " not in given[7:]:  # PERF: as nearly everybody writes it
        return given[7:]
    if found := BEARER.fullmatch(given):
        return found[1]
    if given[:6].lower() == "bearer":
        raise InvalidInput("Authorization: expected Bearer and one token")
    raise Unauthenticated("access token: expected one as Authorization: Bearer TOKEN, got another scheme")


def subject(env: Mapping[str, Any]) -> str | None:
    """Whose token came with this request, where tokens are required."""
    caller: Caller | None = env.get(CALLER)
    return caller.subject if caller else None


def scopes(caller: "Caller") -> str:
    return " ".join(sorted(caller.scopes)) or "none"


def challenge(error: Unauthenticated | Forbidden) -> str:
    """RFC 6750, section 3: no error code for who has brought no token."""
    if isinstance(error, Forbidden):
        return f'{REALM}, error="insufficient_scope", scope="{error.scope}"'
    if not error.reason:
        return REALM
    return f'{REALM}, error="invalid_token", error_description="{quotable(error.reason)}"'


def quotable(text: str) -> str:
    return UNQUOTABLE.sub("'", text)
