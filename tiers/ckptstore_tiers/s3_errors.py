"""What does a failure of botocore mean: may it pass, are the credentials to blame, and which of our errors is it?

Codes are those of S3's error documents; numbers are what botocore gives for an answer without a document, to HEAD for instance. No
message made here holds a credential: servers' words are quoted, and those name at most an access key's absence.
"""

from __future__ import annotations

from typing import Literal

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from ckptstore.errors import AlreadyExists, ChecksumMismatch, CkptStoreError, NotFound, TierFull, TierUnavailable

#: Everything that a call into botocore may raise.
FOREIGN = (BotoCoreError, ClientError, ResponseParserError, HTTPError)
NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
#: The answer was not whole, or there was none.
_BROKEN_TRANSPORT = (HTTPClientError, ConnectionError, IncompleteReadError, ResponseParserError, HTTPError)

_EXISTS = {"PreconditionFailed", "412"}
_MISSING = {"NoSuchKey", "NoSuchVersion", "NoSuchUpload", "NotFound", "404"}
_SHORT = {"InvalidRange", "416"}
# fmt: off
_CREDENTIALS = {
    "AccessDenied", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "RequestExpired",
    "SignatureDoesNotMatch", "TokenRefreshRequired", "UnrecognizedClientException", "401", "403",
}
_FULL = {"EntityTooLarge", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "507"}
_DIGESTS = {"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}
#: Refusals that the same request need not meet again. The digests: what was damaged on the wire is sent anew.
_PASSING = _DIGESTS | {
    "ConditionalRequestConflict", "IncompleteBody", "OperationAborted", "RequestTimeout", "RequestTimeTooSkewed",
}
_TOO_MUCH = {"RequestLimitExceeded", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"}
# fmt: on


def _code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def may_pass(error: Exception) -> bool:
    """Whether the same request may well succeed a moment later."""
    if not isinstance(error, ClientError):
        return isinstance(error, _BROKEN_TRANSPORT)
    status, code = _status_of(error), _code_of(error)
    if code in _FULL or status in (501, 507):
        return False
    return status == 429 or status >= 500 or code in _PASSING | _TOO_MUCH


def is_too_much(error: Exception) -> bool:
    """Whether the server has more to do than it can: it says so, or is silent for longer than it may be."""
    if not isinstance(error, ClientError):
        return isinstance(error, ReadTimeoutError)
    return _status_of(error) in (429, 503) or _code_of(error) in _TOO_MUCH


def refusal(error: ClientError) -> Literal["refused", "exists"] | None:
    """How the server turned down a well-signed request for what it asked: not None only where asking again would change nothing.

    A condition that does not hold is `exists`; a wrong checksum, or a feature that the server lacks, is `refused`.
    """
    code, status = _code_of(error), _status_of(error)
    if code in _EXISTS:
        return "exists"
    if code in _DIGESTS or (status in (400, 501) and code not in _CREDENTIALS | _PASSING | _TOO_MUCH):
        return "refused"
    return None


def blames_credentials(error: ClientError) -> bool:
    """Whether other credentials might help; a bare 400 is what HEAD answers to an expired token."""
    return _code_of(error) in _CREDENTIALS | {"400"}


def missing_bucket(where: str, *, operation: str, subject: str, tier: str) -> TierUnavailable:
    return TierUnavailable(
        f"there is no {where}", operation=operation, subject=subject, tier=tier, hint="create the bucket"
    )


def translated(error: Exception, *, operation: str, key: str, tier: str, where: str) -> CkptStoreError:
    """Our error for what botocore raised; `where` names bucket and endpoint."""

    def unavailable(why: str, hint: str | None = None) -> TierUnavailable:
        return TierUnavailable(why, operation=operation, subject=key, tier=tier, hint=hint)

    if isinstance(error, NO_CREDENTIALS):
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        return unavailable(f"no credentials for {where} ({type(error).__name__})", hint)
    if not isinstance(error, ClientError):
        return unavailable(f"no whole answer from {where}: {error}")
    code, status = _code_of(error), _status_of(error)
    said = f"{code or status}: {str(error.response.get('Error', {}).get('Message', ''))[:200]}"
    if code == "NoSuchBucket":
        return missing_bucket(where, operation=operation, subject=key, tier=tier)
    if code in _MISSING:
        return NotFound(f"nothing is stored under this key in {where}", operation=operation, subject=key, tier=tier)
    if code in _EXISTS:
        return AlreadyExists(
            f"something is stored under this key in {where}", operation=operation, subject=key, tier=tier
        )
    if code in _SHORT:
        return ChecksumMismatch(
            f"the object in {where} is shorter than it was", operation=operation, subject=key, tier=tier
        )
    if code in _FULL or status == 507:
        return TierFull(f"{where} takes no more: {said}", operation=operation, subject=key, tier=tier)
    if code in _CREDENTIALS:
        return unavailable(f"{where} refuses these credentials: {said}", "check credentials, policy and clock")
    return unavailable(f"{where} answers {said}")
