"""The built-in issuer's door: `POST /oauth2/token` (RFC 6749, client credentials), its keys and its description."""

import base64
import http
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

import falcon
import msgspec
import structlog

from access_control.clients import SCOPES
from access_control.issuer import PUBLISHED_SECONDS, BuiltInIssuer, Grant, InvalidClient, InvalidScope
from inference_api.authorisation import PUBLIC, Route, quotable
from inference_api.openapi import TOKEN_PATH, Operation
from inference_api.requests import client_address, media_type, read_body
from inference_core.policy import Quota
from inference_core.quotas import Quotas
from observability.families import TOKENS

FORM = "application/x-www-form-urlencoded"
MAX_FORM_BYTES, MAX_FIELDS = 8192, 16
# SECURITY: of one address. Each costs some 40 ms of a CPU, whether or not the secret is right.
ATTEMPTS = Quota(30, 60)

log = structlog.get_logger()


class TokenError(msgspec.Struct):
    """RFC 6749, section 5.2."""

    error: str
    error_description: str


class Refusal(Exception):
    def __init__(self, code: str, description: str) -> None:
        super().__init__(description)
        self.code = code


class AuthorizationServer(msgspec.Struct):
    """RFC 8414. There is nothing where a person would log in, so no response types."""

    issuer: str
    token_endpoint: str
    jwks_uri: str
    scopes_supported: tuple[str, ...] = SCOPES
    response_types_supported: tuple[str, ...] = ()
    grant_types_supported: tuple[str, ...] = ("client_credentials",)
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic", "client_secret_post")


class JwkSet(msgspec.Struct):
    keys: list[dict[str, Any]]


def routes(issuer: BuiltInIssuer, quotas: Quotas) -> list[Route]:
    return [
        Route(TOKEN_PATH, TokenResource(issuer, quotas), PUBLIC),
        Route("/.well-known/jwks.json", JwksResource(issuer), PUBLIC),
        Route("/.well-known/oauth-authorization-server", MetadataResource(issuer), PUBLIC),
    ]


class TokenResource:
    """An access token, for a client's id and secret."""

    operation = Operation(response=Grant, form=FORM, refusal=TokenError, errors=(401, 413, 415, 429))

    def __init__(self, issuer: BuiltInIssuer, quotas: Quotas) -> None:
        self._issuer = issuer
        self._quotas = quotas

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.set_headers({"Cache-Control": "no-store", "Pragma": "no-cache"})
        address = client_address(req.env)
        self._quotas.take(address, "token", ATTEMPTS)
        client = ""
        try:
            fields = _read_form(req)
            client, secret = _credentials(req.env.get("HTTP_AUTHORIZATION"), fields)
            _check_grant(fields)
            grant, token_id = self._issuer.issue(client, secret, fields.get("scope"))
        except Refusal as error:
            self._refuse(req, resp, client, error.code, str(error))
        except InvalidClient as error:
            self._refuse(req, resp, client, "invalid_client", str(error))
        except InvalidScope as error:
            self._refuse(req, resp, client, "invalid_scope", str(error))
        else:
            TOKENS.of("issued").add()
            log.info(
                "token issued",
                request_id=req.context.request_id,
                client=client,
                address=address,
                scope=grant.scope,
                token_id=token_id,
            )
            resp.data, resp.content_type = msgspec.json.encode(grant), falcon.MEDIA_JSON

    def _refuse(self, req: falcon.Request, resp: falcon.Response, client: str, code: str, description: str) -> None:
        TOKENS.of("refused").add()
        log.warning(
            "token refused",
            request_id=req.context.request_id,
            # SECURITY: no more than is known: somebody may have mistaken one for the other.
            client=client if self._issuer.knows(client) else None,
            address=client_address(req.env),
            reason=code,
        )
        status = http.HTTPStatus.UNAUTHORIZED if code == "invalid_client" else http.HTTPStatus.BAD_REQUEST
        resp.status = falcon.code_to_http_status(status)
        if status == http.HTTPStatus.UNAUTHORIZED:
            resp.set_header("WWW-Authenticate", 'Basic realm="tiercel"')
        resp.data, resp.content_type = msgspec.json.encode(TokenError(code, quotable(description))), falcon.MEDIA_JSON


class JwksResource:
    """The keys by which anybody can verify tokens of the built-in issuer."""

    operation = Operation(response=JwkSet)

    def __init__(self, issuer: BuiltInIssuer) -> None:
        self._issuer = issuer

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.data, resp.content_type = msgspec.json.encode(self._issuer.jwks()), falcon.MEDIA_JSON
        resp.set_header("Cache-Control", f"public, max-age={PUBLISHED_SECONDS:.0f}")

    on_head = on_get


class MetadataResource:
    """Where tokens come from, for programs that find out by themselves."""

    operation = Operation(response=AuthorizationServer)

    def __init__(self, issuer: BuiltInIssuer) -> None:
        name = issuer.name
        described = AuthorizationServer(name, name + TOKEN_PATH, f"{name}/.well-known/jwks.json")
        self._document = msgspec.json.encode(described)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.data, resp.content_type = self._document, falcon.MEDIA_JSON

    on_head = on_get


def _read_form(req: falcon.Request) -> dict[str, str]:
    if media_type(req) != FORM:
        raise Refusal("invalid_request", f"Content-Type: expected {FORM}")
    try:
        text = read_body(req, MAX_FORM_BYTES).decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:  # UnicodeDecodeError as well
        raise Refusal("invalid_request", f"body: expected at most {MAX_FIELDS} fields of a form") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise Refusal("invalid_request", "body: expected each field once, got one twice")
    return fields


def _credentials(authorization: str | None, fields: dict[str, str]) -> tuple[str, str]:
    """RFC 6749, section 2.3.1: by HTTP Basic or in the body, and not both."""
    if authorization is None:
        if "client_id" not in fields or "client_secret" not in fields:
            raise Refusal("invalid_client", "client: expected its id and secret, by HTTP Basic or in the body")
        return fields["client_id"], fields["client_secret"]
    if "client_secret" in fields:
        raise Refusal("invalid_request", "client: expected its secret by HTTP Basic or in the body, got both")
    scheme, _, encoded = authorization.partition(" ")
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except ValueError:  # no base64, not even ASCII, or not UTF-8
        text = ""
    name, colon, secret = text.partition(":")
    if scheme.lower() != "basic" or not colon:
        raise Refusal("invalid_client", "Authorization: expected Basic and base64 of ID:SECRET")
    return unquote_plus(name), unquote_plus(secret)


def _check_grant(fields: dict[str, str]) -> None:
    if "grant_type" not in fields:
        raise Refusal("invalid_request", "grant_type: expected client_credentials, got none")
    if fields["grant_type"] != "client_credentials":
        raise Refusal("unsupported_grant_type", "grant_type: expected client_credentials, got another")
