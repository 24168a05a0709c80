"""What the answers of S3-compatible stores mean, and failures on the way to them: once more, or what to do about it."""

from __future__ import annotations

import aiohttp
import botocore.exceptions as boto
from botocore.parsers import ResponseParserError

TRANSIENT = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    aiohttp.ClientError,
    ResponseParserError,
    OSError,
)
"""Failures on the way; TimeoutError is an OSError."""
TRANSIENT_CODES = frozenset(
    [
        "429",
        "BadDigest",
        "BandwidthLimitExceeded",
        "IncompleteBody",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestTimeout",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
        "XAmzContentSHA256Mismatch",
    ]
)
NO_FILE = frozenset(["NoSuchKey", "404"])
NO_RANGE = frozenset(["InvalidRange", "416"])
NO_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)

DENIED = "access denied; the credentials in use lack the permission for this"
WRONG_KEY = "the store does not accept the access key; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
EXPIRED = "the credentials have expired; get new ones and repeat the command"
WRONG_REGION = "the bucket is in another region or at another endpoint; set AWS_DEFAULT_REGION"
REFUSALS = {
    "NoSuchBucket": "there is no such bucket; create it, or correct the URL",
    "AccessDenied": DENIED,
    "AllAccessDisabled": DENIED,
    "403": DENIED,
    "InvalidAccessKeyId": WRONG_KEY,
    "SignatureDoesNotMatch": WRONG_KEY,
    "ExpiredToken": EXPIRED,
    "ExpiredTokenException": EXPIRED,
    "TokenRefreshRequired": EXPIRED,
    "RequestExpired": EXPIRED,
    "InvalidToken": "the store does not accept the session token; check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "the clocks of this machine and of the store differ too much; set this machine's clock",
    "PermanentRedirect": WRONG_REGION,
    "AuthorizationHeaderMalformed": WRONG_REGION,
    "EntityTooLarge": "the file is too large for the store; make smaller shards with data.images_per_shard",
    "QuotaExceeded": "the store is full; free some space",
    "XMinioStorageFull": "the store is full; free some space",
}


def code(error: boto.ClientError) -> str:
    """The store's word for it, such as NoSuchKey; the status as text where the answer has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_transient(error: boto.ClientError) -> bool:
    """Whether the same request may succeed later."""
    status = _status(error)
    return code(error) in TRANSIENT_CODES or (status >= 500 and status != 501 and code(error) not in REFUSALS)


def describe(error: Exception) -> str:
    """A failure in a few words; never holds a key."""
    if isinstance(error, boto.ClientError):
        return f"{code(error)} (HTTP {_status(error)})"
    if isinstance(error, TimeoutError | boto.ReadTimeoutError | boto.ConnectTimeoutError):
        return "no byte moved for data.storage.timeout_s"
    return f"{type(error).__name__}: {error}"[:200]


def reason(error: Exception) -> str:
    """Why a request is not repeated, and what to do."""
    if isinstance(error, boto.ClientError):
        message = error.response.get("Error", {}).get("Message", "")
        return REFUSALS.get(code(error)) or f"the store refuses: {message} ({describe(error)})"
    if isinstance(error, NO_CREDENTIALS):
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
    if isinstance(error, (boto.ConnectionError, boto.HTTPClientError)):
        return f"no connection ({describe(error)}); check data.storage.endpoint_url, AWS_ENDPOINT_URL and the network"
    return describe(error)


def _status(error: boto.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
