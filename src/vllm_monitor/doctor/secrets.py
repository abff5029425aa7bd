"""What must not be said: the secrets of a command and its environment, and whatever looks like one."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vllm_monitor.persistence import redact, redact_text
from vllm_monitor.persistence.codecs.redaction import REDACTED, is_secret_name

__all__ = ["Secrets", "is_address", "may_be_secret", "without_secrets"]

_LEAST_SECRET_LENGTH = 6
"""A key such as "vllm" or "EMPTY" is none, and hiding it would take ordinary words out of what is said."""
_MOST_PARTS = 3
_SECRET_OPTIONS = ("api-key", "hf-token", "ssl-keyfile-password")
_SECRET_WORDS = ("key", "token", "password", "passphrase", "secret", "credentials")
_NOT_SHORTENED = frozenset({"sec", "to"})
_LEAST_PREFIX = 2
_OPTION = re.compile(r"(?<![\w-])(--?[A-Za-z][\w.-]*)(=|\s+)(?!-|\[redacted\])(\"[^\"]*\"|'[^']*'|\S+)")
_LOGIN = re.compile(r"(?<![^\s/\"'=(])([^\s/:@\"'=(]+):(?!//|\[redacted\]@)([^\s@]+)@")
_HOST_NAME = re.compile(r"[\w.-]*")


def may_be_secret(name: str) -> bool:
    """Whether an option holds a secret, also when its name is cut short, as argparse takes it (``--api-ke``)."""
    name = name.lstrip("-").replace("_", "-").lower()
    if is_secret_name(name) or (name and any(whole.startswith(name) for whole in _SECRET_OPTIONS)):
        return True
    stem, last = name[: len(name) - len(re.split(r"[.-]", name)[-1])], re.split(r"[.-]", name)[-1]
    if len(last) < _LEAST_PREFIX or last in _NOT_SHORTENED:
        return False
    return any(is_secret_name(stem + whole) for whole in _SECRET_WORDS if whole.startswith(last))


def without_secrets(text: str) -> str:
    """A text without what looks like a secret, also behind options that are cut short and in ``user:password@``."""
    text = _LOGIN.sub(rf"\1:{REDACTED}@", redact_text(text))
    return _OPTION.sub(lambda one: f"{one[1]}{one[2]}{REDACTED}" if may_be_secret(one[1]) else one[0], text)


def is_address(host: str) -> bool:
    """Whether a text can be a name or an address of a machine; one with a password in it is none."""
    try:
        ipaddress.ip_address(host.partition("%")[0].strip("[]"))
    except ValueError:
        return _HOST_NAME.fullmatch(host) is not None
    return True


class Secrets:
    """Takes secrets out of all that is said: those that a command and its variables hold, and what looks like one.

    Args:
        options: Options of the command, by name.
        environment: Variables of the server.
    """

    def __init__(self, options: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        found: set[str] = set()
        for name, value in (*options.items(), *environment.items()):
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, str):
                    found.update([one] if may_be_secret(name) and name in options else _parts(name, one))
        host = options.get("host")
        if isinstance(host, str) and not is_address(host):
            found.add(host)
        found = {one for one in found if len(one) >= _LEAST_SECRET_LENGTH}
        found |= {repr(one)[1:-1] for one in found}  # as an error shows it
        self._values = sorted(found, key=len, reverse=True)

    def hide(self, value: Any) -> Any:
        """A copy of a text, or of lists and mappings of texts, without secrets."""
        return redact(self._walked(value))

    def _walked(self, value: Any) -> Any:
        if isinstance(value, str):
            for secret in self._values:
                value = value.replace(secret, REDACTED)
            return without_secrets(value)
        if isinstance(value, Mapping):
            return {self._walked(key): self._walked(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._walked(item) for item in value]
        return self._walked(os.fspath(value)) if isinstance(value, Path) else value


def _parts(name: str, text: str) -> Iterator[str]:
    """The secrets within a value, so that they are known where only a part of it is said."""
    if is_secret_name(name):
        yield text
        return
    for hidden in (redact_text(text), _LOGIN.sub(rf"\1:{REDACTED}@", text)):
        kept = hidden.split(REDACTED)
        if 1 < len(kept) <= _MOST_PARTS + 1:
            match = re.fullmatch("(.+?)".join(map(re.escape, kept)), text, re.DOTALL)
            yield from match.groups() if match is not None else ()
