"""Signatures of requests to EC2's and S3's APIs, versions 2 and 4, as AWS's documents describe them.

Pure: whether a signature is right, and when its request was made. Comparisons take the same time whatever they find.
"""
import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"

#: How old a request may be, or how far ahead of this machine's clock.
FRESH = timedelta(minutes=15)

#: For how long a URL may be signed in advance.
LONGEST = timedelta(days=7)


def ec2(secret: str, signature: str, *, verb: str, host: str, path: str, params: Mapping[str, str], headers: Mapping[str, str],
        body_hash: str) -> bool:
    """Whether a signed request of the EC2 API was signed with a secret. Its host may have lost or gained its port on the way."""
    headers = {name.lower(): value for name, value in headers.items()}
    hosts = list(dict.fromkeys([headers.get("host") or host, host, host.partition(":")[0]]))
    if headers.get("authorization", "").startswith(ALGORITHM) or params.get("X-Amz-Algorithm") == ALGORITHM:
        return any(_same(_version4(secret, verb, path, params, headers | {"host": name}, body_hash), signature) for name in hosts)
    if params.get("SignatureVersion") == "2":
        return any(_same(_version2(secret, verb, name, path, params), signature) for name in hosts)
    return False


def s3(secret: str, signature: str, signed: bytes) -> bool:
    """Whether a text (a version 4 "string to sign", or the older one of S3) was signed with a secret."""
    if signed.startswith(ALGORITHM.encode() + b"\n"):
        lines = signed.split(b"\n")
        if len(lines) != 4:
            return False
        key = _signing_key(secret, lines[2].decode("ascii", "replace"))
        return bool(key) and _same(hmac.new(key, signed, hashlib.sha256).hexdigest(), signature)
    return _same(base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha1).digest()).decode(), signature)


def is_fresh(params: Mapping[str, str], headers: Mapping[str, str], now: datetime) -> bool:
    """Whether a signed request of the EC2 API is of the present: neither old, nor expired, nor of a time to come."""
    stamp = _stamp(params, {name.lower(): value for name, value in headers.items()})
    if expires := _time(params.get("Expires", "")):
        return now <= expires <= now + LONGEST
    made = _time(stamp or params.get("Timestamp", ""))
    if made is None:
        return False
    seconds = params.get("X-Amz-Expires", "")
    lasts = timedelta(seconds=int(seconds)) if seconds.isdecimal() and len(seconds) < 7 else FRESH
    return made - FRESH <= now <= made + min(lasts, LONGEST)


def is_fresh_text(signed: bytes, now: datetime) -> bool:
    """Whether a signed text of version 4 is of the present. The older form has no time that could be relied on."""
    if not signed.startswith(ALGORITHM.encode() + b"\n"):
        return True
    made = _time(signed.split(b"\n")[1].decode("ascii", "replace"))
    return made is not None and abs(now - made) <= LONGEST


def decoded(text: str) -> bytes:
    """The bytes of base64, with either alphabet. Raises ValueError."""
    try:
        return base64.urlsafe_b64decode(text.replace("+", "-").replace("/", "_") + "=" * (-len(text) % 4))
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("no base64") from error


def _version2(secret: str, verb: str, host: str, path: str, params: Mapping[str, str]) -> str:
    text = "\n".join((verb.upper(), host.lower(), path or "/", _query(params, {"Signature"})))
    digest = hashlib.sha256 if params.get("SignatureMethod") == "HmacSHA256" else hashlib.sha1
    return base64.b64encode(hmac.new(secret.encode(), text.encode(), digest).digest()).decode()


def _version4(secret: str, verb: str, path: str, params: Mapping[str, str], headers: Mapping[str, str], body_hash: str) -> str:
    """The signature that a request should have; "" where it says too little."""
    said = dict(part.strip().split("=", 1) for part in
                headers.get("authorization", "").removeprefix(ALGORITHM).split(",") if "=" in part)
    scope = (said.get("Credential") or params.get("X-Amz-Credential", "")).partition("/")[2]
    signed = (said.get("SignedHeaders") or params.get("X-Amz-SignedHeaders", "")).lower()
    stamp = _stamp(params, headers)
    key = _signing_key(secret, scope)
    if not key or "host" not in signed.split(";") or not stamp.startswith(scope.partition("/")[0]):
        return ""
    in_query = "authorization" not in headers
    request = "\n".join((
        verb.upper(), path or "/", "" if verb.upper() == "POST" and not in_query else _query(params, {"X-Amz-Signature"}),
        *(f"{name}:{' '.join(headers.get(name, '').split())}" for name in signed.split(";")), "", signed,
        body_hash or headers.get("x-amz-content-sha256", "") or hashlib.sha256().hexdigest()))
    text = "\n".join((ALGORITHM, stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _signing_key(secret: str, scope: str) -> bytes:
    """The key of a scope, "date/region/service/aws4_request"; b"" for what is none."""
    parts = scope.split("/")
    if len(parts) != 4 or parts[3] != "aws4_request":
        return b""
    key = f"AWS4{secret}".encode()
    for part in parts:
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


def _query(params: Mapping[str, str], without: Iterable[str]) -> str:
    left_out = set(without)
    encoded = sorted((quote(key, safe="-_.~"), quote(value, safe="-_.~")) for key, value in params.items() if key not in left_out)
    return "&".join(f"{key}={value}" for key, value in encoded)


def _stamp(params: Mapping[str, str], headers: Mapping[str, str]) -> str:
    return params.get("X-Amz-Date") or headers.get("x-amz-date", "")


def _time(text: str) -> datetime | None:
    for form in ("%Y%m%dT%H%M%SZ", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%dT%H:%M:%S"):
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC)
        except ValueError:
            continue
    return None


def _same(right: str, given: str) -> bool:
    return bool(right) and hmac.compare_digest(right.encode(), given.strip().encode())
