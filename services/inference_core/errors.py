"""Everything that can go wrong with a prediction, in terms of the domain.

TiercelError
├── InvalidInput            what the caller sent cannot be used
│   ├── PayloadTooLarge     ... because it is over a bound
│   ├── UnsupportedMedia    ... because of its media type
│   ├── UnsupportedCoding   ... because of its content coding
│   └── UnsupportedFeature  ... because it asks for an extension that is not offered
├── Unauthenticated         nobody knows who asks
├── Forbidden               the caller may not do this
├── NotFound                no such model or version
├── Conflict                the same is being done at the moment
├── Mismatch                what was sent contradicts what was sent before
├── TooManyJobs             the caller has as many jobs as it may
├── QuotaExceeded           the caller has asked for more than its quota
├── Unavailable             the model or the server cannot answer now
├── DeadlineExceeded        the caller's deadline passed
├── InferenceFailed         the runtime failed on input that had been accepted
└── PackageRefused          a model package is not fit to be served

A message names what was concerned, what was expected and what came. None of these knows HTTP:
`inference_api.error_handlers` holds the one table from this tree to status codes.
"""

from typing import Any

import msgspec


class TiercelError(Exception):
    """Base of the tree; `str(error)` is the sentence the caller reads."""


class InvalidInput(TiercelError):
    pass


class PayloadTooLarge(InvalidInput):
    pass


class UnsupportedMedia(InvalidInput):
    pass


class UnsupportedCoding(InvalidInput):
    pass


class UnsupportedFeature(InvalidInput):
    pass


class Unauthenticated(TiercelError):
    """`reason` says what is wrong with the token, empty if there is none."""

    def __init__(self, text: str, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason

    @classmethod
    def because(cls, reason: str) -> "Unauthenticated":
        return cls(f"access token: {reason}", reason)


class Forbidden(TiercelError):
    """`scope` is what the caller lacks, and `subject` who that is."""

    def __init__(self, text: str, scope: str, subject: str) -> None:
        super().__init__(text)
        self.scope = scope
        self.subject = subject


class NotFound(TiercelError):
    pass


class Conflict(TiercelError):
    pass


class Mismatch(TiercelError):
    pass


class TooManyJobs(TiercelError):
    pass


class QuotaExceeded(TiercelError):
    """`allowance` is what is left: an `inference_core.quotas.Allowance`."""

    def __init__(self, text: str, allowance: Any) -> None:
        super().__init__(text)
        self.allowance = allowance


class Unavailable(TiercelError):
    pass


class DeadlineExceeded(TiercelError):
    pass


class InferenceFailed(TiercelError):
    pass


class PackageRefused(TiercelError):
    pass


def in_plain_words(error: msgspec.DecodeError | UnicodeDecodeError) -> str:
    """What msgspec says of JSON that does not fit (it names expected, got and the place), without its typography."""
    if isinstance(error, UnicodeDecodeError):
        return f"expected text in UTF-8, got something else ({error.reason})"
    text = str(error).replace("`", "").replace(" - at $", " at ")
    return text[0].lower() + text[1:] if text.startswith(("Expected", "Object", "Number", "Integer")) else text
