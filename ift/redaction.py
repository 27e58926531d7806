"""No secret in what people, files and servers are told: logs, params, reports, the spec that is saved with a run.

In:  a text, or plain values at any depth.
Out: the same without what opens something.

    without_secrets("postgresql://me:pw@db/mlflow")      # "postgresql://db/mlflow"
    without_secrets("https://host/x?page=1&token=abc")   # "https://host/x?page=1&token=…"

Taken out are users and passwords of addresses, tokens in queries and in `Authorization`, what is set to a password or a
key (`password=…`, `x-api-key: …`, `{'api_key': '…'}`), keys that show what they are (AWS, the hub, GitHub, GitLab,
`sk-…`, private keys), and wherever they stand the values of environment variables that are named as secrets (HF_TOKEN,
AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD, RAY_AUTH_TOKEN and the like). Of an `Authorization` whose scheme is
none of the usual ones, and of `sk-…`, only what is long and has a digit counts: words are no keys.
"""

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

T = TypeVar("T")
GONE = "…"
_SHORTEST = 8  # characters; a shorter value of a variable stands in too much that is no secret
_NAMED = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|KEY|KEYS)(_|$)", re.I)
_PLACES = re.compile(r"_(PATH|FILE|DIR|URL|NAME)$", re.I)  # say where a secret is, not what
_PASSWORD = r"(?:pass(?:word|wd|phrase)|client[_-]?secret|secret[_-]?key)"
_KEY = r"(?:(?:api|account|access)[_-]?key|(?:access|auth|refresh|session|hf|api)[_-]?token)"
_NO_VALUE = r"(?!(?:None|null|true|false)\b)"
_RULES = [
    # a password with a slash in it; a port is digits, and what follows it a path
    (re.compile(r"(\w[\w+.-]*://)[^/\s\"'<>@:\[]+:(?!\d{1,5}(?:[/?#]|$))[^\s\"'<>?#]*@(?=[\w\[])"), r"\1"),
    (re.compile(r"(\w[\w+.-]*://)[^/\s\"'<>]*@"), r"\1"),
    (
        re.compile(
            r"([?&](?:[^=&\s]*(?:password|passwd|token|secret|key|signature|credential)[^=&\s]*|sig)=)[^&\s\"'<>]+",
            re.I,
        ),
        rf"\1{GONE}",
    ),
    (re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?(?:Bearer|Basic)\s+)[^\s\"',}]+", re.I), rf"\1{GONE}"),
    # these sign with several values, between commas
    (
        re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?(?:Digest|AWS4-[\w-]+)\s+)[^\n'}]+", re.I),
        rf"\1{GONE}",
    ),
    (
        re.compile(
            r"(authorization[\"']?\s*[:=]\s*[\"']?(?!AWS4-|Digest\b)(?:(?:token|apikey)\s+|(?:[a-z][\w-]*\s+)?(?=\S{12})))"
            r"(?=[^\s\"',}]*[0-9])[^\s\"',}]+",
            re.I,
        ),
        rf"\1{GONE}",
    ),
    # {"password": "…"}, password='…'
    (
        re.compile(
            rf"((?:{_PASSWORD}|{_KEY})(?:[\"']\s*:|\s?[:=])\s*(?P<v>[\"']))(?:\\.|(?!(?P=v))[^\\\n])+",
            re.I,
        ),
        rf"\1{GONE}",
    ),
    # password=…; of keys also x-api-key: …
    (
        re.compile(rf"((?:{_PASSWORD}|{_KEY})=|{_KEY}:\s?){_NO_VALUE}[^\s\"'&;,<>)\]}}=]+=*", re.I),
        rf"\1{GONE}",
    ),
    (re.compile(r"(?<![\w-])sk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}"), GONE),
    (re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}"), GONE),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), GONE),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), GONE),
    (re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"), GONE),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.S), GONE),
]


def secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret, by the names that such have."""
    return bool(_NAMED.search(name)) and not _PLACES.search(name)


def without_secrets(value: T) -> T:
    """`value` without secrets: a text, or lists and mappings of texts and of anything else, at any depth."""
    found: Any = value
    if isinstance(value, str):
        found = _text(value)
    elif isinstance(value, Mapping):
        found = {key: without_secrets(inner) for key, inner in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(without_secrets(inner) for inner in value)
    return found  # type: ignore[no-any-return]


def _text(text: str) -> str:
    for pattern, to in _RULES:
        text = pattern.sub(to, text)
    known = _known(tuple(sorted({value for name, value in os.environ.items() if secret_name(name)})))
    return known.sub(GONE, text) if known else text


@lru_cache(maxsize=8)
def _known(values: tuple[str, ...]) -> re.Pattern[str] | None:
    """What finds any of these values, as they are and as they stand in an address."""
    long = {form for value in values for form in (value, quote(value, safe="")) if len(value) >= _SHORTEST}
    return re.compile("|".join(map(re.escape, sorted(long, key=len, reverse=True)))) if long else None


def clean(path: Path) -> None:
    """Take the secrets out of a file of text, in its place; nothing is written where it has none."""
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        if (cleaned := without_secrets(text)) != text:
            path.write_text(cleaned, encoding="utf-8", errors="surrogateescape")
