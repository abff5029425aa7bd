"""Take secrets out of arguments and environments before anything is stored or logged.

A value is hidden when its name says that it is a secret (``HF_TOKEN``, ``apiKey``, ``--api-key``,
``db_password``), or when it looks like one whatever its name (``Bearer ...``, ``hf_...``, a private key, the
password of a URL). Names that only sound alike (``max_tokens``, ``tokenizer``, ``key_value``, ``eos_token``)
keep their values. Redacting twice changes nothing.

Where anything may stand (the metadata of a record, an error message), names say too little: there
:func:`redact_certain` hides only what cannot be anything but a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

__all__ = ["REDACTED", "is_secret_name", "redact", "redact_certain", "redact_text"]

REDACTED = "[redacted]"

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORDS = frozenset(
    [
        "secret",
        "secrets",
        "password",
        "passwords",
        "passwd",
        "passphrase",
        "credential",
        "credentials",
        "auth",
        "authorization",
        "bearer",
        "cookie",
        "cookies",
    ]
)
_SECRET_PARTS = ("secret", "password", "passwd", "passphrase", "credential")
_GLUED_ENDS = ("apikey", "apikeys", "accesskey", "privatekey", "authtoken", "accesstoken", "hftoken", "apitoken")
_KEY_OWNERS = frozenset(
    [
        "api",
        "access",
        "private",
        "secret",
        "encryption",
        "signing",
        "auth",
        "ssh",
        "master",
        "account",
        "subscription",
        "client",
        "license",
    ]
)
_NO_SECRET_KEYS = frozenset(
    [
        "primary",
        "foreign",
        "sort",
        "partition",
        "cache",
        "public",
        "dict",
        "map",
        "mapping",
        "routing",
        "hash",
        "prefix",
        "shard",
        "group",
        "by",
        "join",
        "index",
        "lookup",
        "order",
    ]
)
# Words that make "token" a unit of text: max_num_batched_token(s), eos_token, time_per_output_token ...
_TEXT_TOKENS = frozenset(
    [
        "eos",
        "bos",
        "pad",
        "unk",
        "sep",
        "cls",
        "mask",
        "stop",
        "special",
        "image",
        "audio",
        "video",
        "max",
        "min",
        "num",
        "number",
        "per",
        "first",
        "inter",
        "next",
        "last",
        "output",
        "input",
        "prompt",
        "generation",
        "generated",
        "count",
        "counts",
        "limit",
        "budget",
        "latency",
        "time",
        "id",
        "ids",
        "bucket",
        "rate",
        "level",
        "draft",
        "speculative",
        "tokens",
        "ignore",
        "skip",
        "add",
        "begin",
        "end",
        "start",
        "think",
        "thinking",
        "reasoning",
    ]
)
_TOKEN_OWNERS = frozenset(["api", "access", "auth", "hf", "secret", "bearer", "refresh", "session", "github"])
_PASS_OWNERS = frozenset(
    ["db", "user", "root", "admin", "smtp", "mysql", "pg", "postgres", "redis", "proxy", "registry", "docker", "ssl"]
)

_SECRET_LOOKS = re.compile(
    r"""
      (?<![A-Za-z0-9_-])(?:
          sk-(?:[A-Za-z0-9_-]{20,}|(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{6,})
        | (?:hf|gh[posur])_(?:[A-Za-z0-9]{16,}|(?=[A-Za-z]*\d)[A-Za-z0-9]{6,})
        | github_pat_\w{10,} | glpat-[\w-]{10,} | xox[abprs]-[\w-]{10,}
        | AKIA[0-9A-Z]{16} | AIza[\w-]{30,}
        | eyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*
      )
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----.*?(?:-----END[ ][A-Z ]*PRIVATE[ ]KEY-----|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
_CERTAIN_SECRETS = re.compile(
    r"""
      (?<![A-Za-z0-9_-])(?:
          sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,}
        | (?:hf|gh[posur])_[A-Za-z0-9]{30,}
        | github_pat_\w{20,} | glpat-[\w-]{20,} | xox[abprs]-[\w-]{20,}
        | AKIA[0-9A-Z]{16} | AIza[\w-]{35}
        | eyJ[\w-]{8,}\.eyJ[\w-]{4,}\.[\w-]*
      )
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----.*?(?:-----END[ ][A-Z ]*PRIVATE[ ]KEY-----|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
_CERTAIN_SCHEME = re.compile(r"\b(Bearer\s+)(?=[A-Za-z._~+/-]*\d)[A-Za-z0-9._~+/=-]{16,}", re.IGNORECASE)
_SCHEME = re.compile(r"\b(Bearer|Basic)(\s+)(?!\[redacted\])[A-Za-z0-9._~+/=-]{4,}", re.IGNORECASE)
_PROSE_AFTER_SCHEME = re.compile(r"Basic\s+[a-z]{1,15}|Bearer\s+(?:tokens?|auth\w*|schemes?|of)", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*):([^\s/@][^\s/]*|)@")
_QUOTED_PAIR = re.compile(r"""(["'])([\w.-]+)\1(\s*:\s*)(["'])((?:\\.|(?!\4).)*)\4""")
_OPTION = re.compile(r"""(--?[A-Za-z][\w.-]*)(=|\s+)("[^"]*"|'[^']*'|[^\s"']+)""")
_ASSIGNMENT = re.compile(r"""(?<![\w-])([A-Za-z_][\w.-]*)(=|:\s+)("[^"]*"|'[^']*'|[^\s&;,"']+)""")
_OPTION_NAME = re.compile(r"--?[A-Za-z][\w.-]*")


def is_secret_name(name: str) -> bool:
    """Whether a setting, variable or option of this name holds a secret."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words:
        return False
    if any(word in _SECRET_WORDS or any(part in word for part in _SECRET_PARTS) for word in words):
        return True
    if any(word.endswith(_GLUED_ENDS) for word in words) or "".join(words).endswith(_GLUED_ENDS):
        return True
    return _is_secret_token(words) or _is_secret_key(words) or _is_secret_pass(words)


def _is_secret_token(words: list[str]) -> bool:
    if "token" in words:
        return not _TEXT_TOKENS.intersection(words)
    return words[-1] == "tokens" and bool(_TOKEN_OWNERS.intersection(words))


def _is_secret_key(words: list[str]) -> bool:
    for position, word in enumerate(words):
        owner = words[position - 1] if position else ""
        if word in {"key", "keys"} and owner in _KEY_OWNERS:
            return words[position + 1 : position + 2] not in (["file"], ["path"])
    return words[-1] == "key" and (len(words) == 1 or words[-2] not in _NO_SECRET_KEYS)


def _is_secret_pass(words: list[str]) -> bool:
    return words[-1] in {"pass", "pwd"} and bool(_PASS_OWNERS.intersection(words))


def redact(value: Any) -> Any:
    """A copy of ``value`` without secrets; containers are walked, other objects are returned as they are.

    Lists and tuples of text are also read as a command line: what follows a secret option is hidden.
    """
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {key: _redact_entry(key, item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_redact_items(value))
    if type(value) in (set, frozenset):
        return type(value)(redact(item) for item in value)
    if isinstance(value, bytes):
        text = value.decode("latin-1")
        hidden = redact_text(text)
        return value if hidden == text else hidden.encode("latin-1")
    return value


def redact_certain(value: Any) -> Any:
    """A copy of ``value`` without what can only be a secret, whatever the names around it say.

    Long tokens of known forms, private keys, long bearer tokens, and the passwords of URLs. Keys of dictionaries
    and all that is neither a text nor a plain container are returned as they are.
    """
    if type(value) is str:
        return _redact_certain_text(value)
    if type(value) is dict:
        return {key: redact_certain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(redact_certain(item) for item in value)
    return value


def _redact_certain_text(text: str) -> str:
    if len(text) < 8:
        return text
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1:{REDACTED}@", text)
    text = _CERTAIN_SECRETS.sub(REDACTED, text)
    return _CERTAIN_SCHEME.sub(rf"\1{REDACTED}", text)


def _redact_entry(name: Any, value: Any) -> Any:
    if isinstance(name, str) and is_secret_name(name):
        return _hide(value)
    return redact(value)


def _hide(value: Any) -> Any:
    """Hide a whole value; that there is none, or that it is a mere switch, is no secret."""
    if value is None or isinstance(value, bool) or value in ("", b""):
        return value
    if isinstance(value, Mapping):
        return {key: _hide(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_hide(item) for item in value)
    return REDACTED


def _redact_items(items: Sequence[Any]) -> list[Any]:
    """Items of a list, read as a command line where they look like one."""
    redacted = []
    hiding = False
    for item in items:
        if isinstance(item, str) and item.startswith("-"):
            hiding = _OPTION_NAME.fullmatch(item) is not None and is_secret_name(item)
            redacted.append(redact_text(item))
        else:
            redacted.append(_hide(item) if hiding else redact(item))
    return redacted


def redact_text(text: str) -> str:
    """A text without the secrets in it: command lines, URLs, headers, JSON, tokens of known forms."""
    if len(text) < 4:
        return text
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1:{REDACTED}@", text)
    if "'" in text or '"' in text:
        text = _QUOTED_PAIR.sub(_hide_quoted, text)
    text = _SECRET_LOOKS.sub(REDACTED, text)
    text = _SCHEME.sub(_hide_scheme, text)
    if "-" in text:
        text = _OPTION.sub(_hide_pair, text)
    if "=" in text or ": " in text:
        text = _ASSIGNMENT.sub(_hide_pair, text)
    return text


def _hide_scheme(match: re.Match[str]) -> str:
    if _PROSE_AFTER_SCHEME.fullmatch(match.group()):
        return match.group()  # "basic usage", "bearer token": words, not credentials
    return f"{match.group(1)}{match.group(2)}{REDACTED}"


def _hide_quoted(match: re.Match[str]) -> str:
    quote, name, separator, mark, value = match.groups()
    if not value or not is_secret_name(name):
        return match.group()
    return f"{quote}{name}{quote}{separator}{mark}{REDACTED}{mark}"


def _hide_pair(match: re.Match[str]) -> str:
    name, separator, value = match.groups()
    if not is_secret_name(name) or value.startswith(("-", REDACTED)) or _is_scheme(value):
        return match.group()
    if value.lower() in {"none", "null", "true", "false"}:
        return match.group()
    return f"{name}{separator}{REDACTED}"


def _is_scheme(value: str) -> bool:
    """``Authorization: Bearer ...``: the word names the scheme, the secret behind it is already hidden."""
    return value.lower() in {"bearer", "basic"}
