"""Take secrets out of arguments and environments before anything is stored or logged.

A value is hidden when its name says that it is a secret (``HF_TOKEN``, ``apiKey``, ``--api-key``,
``db_password``), or when it looks like one whatever its name (``Bearer ...``, ``hf_...``, a private key, the
password of a URL). Names that only sound alike (``max_tokens``, ``tokenizer``, ``key_value``, ``eos_token``)
keep their values. Redacting twice changes nothing. One file, though over 500 lines: what is hidden must be
reviewed as a whole, and much of it is the list of names.

Where anything may stand (the metadata of a record, an error message), names say too little: there
:func:`redact_certain` hides only what cannot be anything but a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from vllm_monitor.persistence.codecs.value_codec import DEEPEST, too_deep

__all__ = ["REDACTED", "is_secret_name", "redact", "redact_certain", "redact_text", "within_depth"]

REDACTED = "[redacted]"
_LONG_KEY = 20

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
        "cred",
        "creds",
        "jwt",
        "otp",
        "totp",
        "dsn",
        "webhook",
        "auth",
        "authorization",
        "bearer",
        "cookie",
        "cookies",
    ]
)
_SECRET_PARTS = ("secret", "password", "passwd", "passphrase", "credential")
_GLUED_ENDS = (
    "apikey",
    "apikeys",
    "accesskey",
    "privatekey",
    "authtoken",
    "accesstoken",
    "hftoken",
    "apitoken",
    "masterkey",
    "encryptionkey",
    "signingkey",
    "sshkey",
)
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
    [
        "my",
        "app",
        "db",
        "sql",
        "database",
        "user",
        "login",
        "root",
        "sudo",
        "admin",
        "service",
        "smtp",
        "mail",
        "email",
        "ftp",
        "ldap",
        "vault",
        "mysql",
        "pg",
        "postgres",
        "redis",
        "proxy",
        "registry",
        "docker",
        "ssl",
        "ssh",
        "key",
        "keystore",
    ]
)
_PAT_OWNERS = frozenset(["github", "gh", "gitlab", "git", "azure", "devops", "databricks"])
_OLD_FOLDER = frozenset(["old", "last", "prev", "previous"])
_WEAK_NAMES = frozenset(["key", "keys", "token", "auth", "bearer", "cookie", "cookies", "secrets", "credentials"])

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
_ESCAPED_PAIR = re.compile(r"""(\\{1,3}["'])([\w.-]+)\1(\s*:\s*)(\\{1,3}["'])((?:(?!\4)(?:\\.|.))*)\4""")
_URL_TOKEN = re.compile(r"(://)(?=[^/\s:@]*\d)[^/\s:@]{16,}@")
_URL_SIGNATURE = re.compile(r"""([?&](?:sig|signature|x-(?:amz|goog)-signature)=)[^&\s"']+""", re.IGNORECASE)
_WEBHOOK = re.compile(
    r"""(https://(?:hooks\.slack\.com/|(?:\w+\.)?discord(?:app)?\.com/api/webhooks/))(?!\[redacted\])[^\s"']+"""
)
_CURL_USER = re.compile(r"""((?<!\S)(?:-u|--user|--proxy-user)(?:\s+|=)["']?[^\s:"']+:)[^\s"']+""")
_COLON_PAIR = re.compile(r"""(?<![\w-])([A-Za-z_][\w.-]*)(:)(?!//)("[^"]*"|'[^']*'|[^\s&;,"']+)""")
_VARIABLE_AND_VALUE = re.compile(r"(?<![\w-])([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(\s+)((?=\S*\d)[^\s=:]{12,})")
_OPTION = re.compile(r"""(--?[A-Za-z][\w.-]*)(=|:(?!//)|\s+)("[^"]*"|'[^']*'|[^\s"']+)""")
_ASSIGNMENT = re.compile(
    r"""(?<![\w-])([A-Za-z_][\w.-]*)(=|[ \t]*=>?[ \t]*|[ \t]*:\s+)(\[[^\]]*\]|"[^"]*"|'[^']*'|[^\s&;,"']+)"""
)
_AUTHORIZATION = re.compile(
    r"""\b((?:proxy-)?authorization["']?\s*[:=]\s*["']?(?:(?:bearer|basic|token|digest|apikey|negotiate)\s+)?)"""
    r"""(?!\[redacted\]|(?:bearer|basic|token|digest|apikey|negotiate)\b)[^\s"',;]+""",
    re.IGNORECASE,
)
_XML = re.compile(r"<([A-Za-z_][\w.:-]*)>([^<]+)</\1>")
_SAID = re.compile(r"""\b(password|passwd|passphrase)(\s+is\s+|\s+(?=["']))("[^"]*"|'[^']*'|[^\s"']+)""", re.IGNORECASE)
_COMMAND_PASSWORD = re.compile(r"(\bsshpass\s+-p\s*|\b(?:mysql|mysqldump|mysqladmin|mariadb)\b[^\n]*?\s-p)(?=\S)[^\s]+")
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
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
    if ("connection", "string") in pairwise(words) or words == ["pin"]:
        return True
    return _is_secret_token(words) or _is_secret_key(words) or _is_secret_pass(words)


def _is_certain_name(name: str) -> bool:
    """Whether a name is that of a secret even where it may be a mere word: ``api_key``, not ``key``."""
    return name.strip("-").lower() not in _WEAK_NAMES and is_secret_name(name)


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
    last, owners = words[-1], set(words[:-1])
    if last in {"pwd", "pw"}:
        return bool(owners) and not owners & _OLD_FOLDER
    if last == "pat":
        return bool(owners & _PAT_OWNERS)
    if last == "pass":
        return not owners or bool(owners & _PASS_OWNERS)
    return last[-4:] == "pass" and last[:-4] in _PASS_OWNERS


def redact(value: Any) -> Any:
    """A copy of ``value`` without secrets; containers are walked, other objects are returned as they are.

    Lists and tuples of text are also read as a command line: what follows a secret option is hidden.

    Raises:
        ValueNotStorableError: When it is nested deeper than anything that can be stored, or contains itself.
    """
    return _redact(value, DEEPEST)


def _redact(value: Any, room: int) -> Any:
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        return redact_text(value)
    if room < 0:
        raise too_deep()
    if isinstance(value, Mapping):
        return _redact_mapping(value, room)
    if type(value) in (list, tuple):
        return type(value)(_redact_pair(value, room - 1) or _redact_items(value, room - 1))
    if isinstance(value, PurePath):
        hidden_path = redact_text(str(value))
        return value if hidden_path == str(value) else type(value)(hidden_path)
    if type(value) in (set, frozenset):
        return type(value)(_redact(item, room - 1) for item in value)
    if isinstance(value, bytes):
        text = value.decode("latin-1")
        hidden = redact_text(text)
        return value if hidden == text else hidden.encode("latin-1")
    return value


def redact_certain(value: Any) -> Any:
    """A copy of ``value`` without what can only be a secret, whatever the names around it say.

    Long tokens of known forms, private keys, long bearer tokens, and the passwords of URLs. Keys of dictionaries
    and all that is neither a text nor a plain container are returned as they are.

    Raises:
        ValueNotStorableError: When it is nested deeper than anything that can be stored, or contains itself.
    """
    return _redact_certain(value, DEEPEST)


def _redact_certain(value: Any, room: int) -> Any:
    if type(value) is str:
        return _redact_certain_text(value)
    if room < 0:
        raise too_deep()
    if type(value) is dict:
        return {key: _redact_certain(item, room - 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_redact_certain(item, room - 1) for item in value)
    return value


def within_depth(value: Any, shown: Callable[[Any], str]) -> Any:
    """The value, with the text that ``shown`` returns in place of what contains itself or is too deep to be stored."""
    return _within_depth(value, shown, DEEPEST, frozenset())


def _within_depth(value: Any, shown: Callable[[Any], str], room: int, around: frozenset[int]) -> Any:
    if not isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return value
    if room <= 0 or id(value) in around:
        return shown(value)
    around |= {id(value)}
    if isinstance(value, Mapping):
        items = {key: _within_depth(item, shown, room - 1, around) for key, item in value.items()}
        return items if any(items[key] is not item for key, item in value.items()) else value
    parts = [_within_depth(item, shown, room - 1, around) for item in value]
    if all(new is old for new, old in zip(parts, value, strict=True)):
        return value
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(parts)
    return frozenset(parts)


def _redact_certain_text(text: str) -> str:
    if len(text) < 8:
        return text
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1:{REDACTED}@", text)
    text = _CERTAIN_SECRETS.sub(REDACTED, text)
    return _CERTAIN_SCHEME.sub(rf"\1{REDACTED}", text)


def _redact_mapping(value: Mapping[Any, Any], room: int) -> dict[Any, Any]:
    redacted = {_redact_key(key): _redact_entry(key, item, room - 1) for key, item in value.items()}
    # One variable as a mapping, in the manner of Kubernetes: {"name": "HF_TOKEN", "value": "..."}
    named = next((value[key] for key in ("name", "key") if isinstance(value.get(key), str)), "")
    if "value" in value and is_secret_name(named):
        redacted["value"] = _hide(value["value"], room - 1)
    return redacted


def _redact_key(key: Any) -> Any:
    """A key may be a whole option or line with its secret."""
    return redact_text(key) if type(key) is str and ("=" in key or " " in key or len(key) >= _LONG_KEY) else key


def _redact_entry(name: Any, value: Any, room: int) -> Any:
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    if isinstance(name, str) and is_secret_name(name):
        return _hide(value, room)
    return _redact(value, room)


def _hide(value: Any, room: int) -> Any:
    """Hide a whole value; that there is none, or that it is a mere switch, is no secret."""
    if value is None or isinstance(value, bool) or (isinstance(value, (str, bytes)) and not value):
        return value
    if room < 0:
        raise too_deep()
    if isinstance(value, Mapping):
        return {key: _hide(item, room - 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_hide(item, room - 1) for item in value)
    return REDACTED


def _redact_pair(items: Sequence[Any], room: int) -> list[Any] | None:
    """A name and its value, as ``dict.items()`` gives them; ``None`` when the two are something else."""
    if len(items) != 2 or type(items[0]) is not str or type(items[1]) not in (str, bytes):
        return None
    name, value = items
    if not _NAME.fullmatch(name) or not _is_certain_name(name):
        return None
    if type(value) is str and is_secret_name(value) and not any(map(str.isdigit, value)):
        return None  # a list of names
    return [name, _hide(value, room)]


def _redact_items(items: Sequence[Any], room: int) -> list[Any]:
    """Items of a list, read as a command line where they look like one."""
    redacted = []
    hiding = False
    for item in items:
        if isinstance(item, str) and item.startswith("-"):
            hiding = _OPTION_NAME.fullmatch(item) is not None and is_secret_name(item)
            redacted.append(redact_text(item))
        else:
            redacted.append(_hide(item, room) if hiding else _redact(item, room))
    return redacted


def redact_text(text: str) -> str:
    """A text without the secrets in it: command lines, URLs, headers, JSON, tokens of known forms."""
    if len(text) < 4:
        return text
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1:{REDACTED}@", text)
        text = _URL_TOKEN.sub(rf"\1{REDACTED}@", text)
        text = _WEBHOOK.sub(rf"\1{REDACTED}", text)
        text = _URL_SIGNATURE.sub(rf"\1{REDACTED}", text)
    if "curl" in text:
        text = _CURL_USER.sub(rf"\1{REDACTED}", text)
    if "'" in text or '"' in text:
        text = _QUOTED_PAIR.sub(_hide_quoted, text)
        if "\\" in text:
            text = _ESCAPED_PAIR.sub(_hide_quoted, text)  # JSON within JSON
    text = _SECRET_LOOKS.sub(REDACTED, text)
    text = _AUTHORIZATION.sub(rf"\1{REDACTED}", text)
    text = _SAID.sub(rf"\1\2{REDACTED}", text)
    if "<" in text:
        text = _XML.sub(_hide_element, text)
    if " -p" in text:
        text = _COMMAND_PASSWORD.sub(rf"\1{REDACTED}", text)
    text = _SCHEME.sub(_hide_scheme, text)
    if "-" in text:
        text = _OPTION.sub(_hide_pair, text)
    if "=" in text or ":" in text:
        text = _ASSIGNMENT.sub(_hide_pair, text)
    if ":" in text:
        text = _COLON_PAIR.sub(_hide_certain_pair, text)
    if "_" in text:
        text = _VARIABLE_AND_VALUE.sub(_hide_certain_pair, text)
    return text


def _hide_certain_pair(match: re.Match[str]) -> str:
    return _hide_pair(match) if _is_certain_name(match.group(1)) else match.group()


def _hide_scheme(match: re.Match[str]) -> str:
    if _PROSE_AFTER_SCHEME.fullmatch(match.group()):
        return match.group()  # "basic usage", "bearer token": words, not credentials
    return f"{match.group(1)}{match.group(2)}{REDACTED}"


def _hide_element(match: re.Match[str]) -> str:
    name = match.group(1)
    return f"<{name}>{REDACTED}</{name}>" if is_secret_name(name) else match.group()


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
