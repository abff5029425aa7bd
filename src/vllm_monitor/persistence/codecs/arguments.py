"""The arguments of verbs, checked at the door: what makes no sense is refused with a hint, whatever it is.

What a question cannot mean is a :class:`ConfigurationError`; what cannot be kept is a
:class:`ValueNotStorableError`. Nothing here trusts an object's own ``repr``, ``hash`` or comparison.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from vllm_monitor.errors import ConfigurationError, ValueNotStorableError

__all__ = [
    "checked_filter",
    "checked_items",
    "checked_limit",
    "checked_mapping",
    "checked_number",
    "checked_path",
    "checked_text",
    "checked_time",
    "checked_version",
    "shown",
    "stored_text",
]

_MOST = (1 << 63) - 1  # what a database can be asked for
_SHOWN_CHARACTERS = 60
_PRINTED_BITS = 10_000

Item = TypeVar("Item")


def shown(value: Any) -> str:
    """A value in a message: short, and harmless whatever its ``repr`` does."""
    if isinstance(value, int) and value.bit_length() > _PRINTED_BITS:  # more digits than Python is willing to print
        return f"an int of {value.bit_length()} bits"
    try:
        text = repr(value)
    except Exception as error:  # a foreign __repr__ may raise anything; the type is shown
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def checked_limit(limit: Any) -> int | None:
    """The limit of a question; ``None`` is all.

    Raises:
        ConfigurationError: When it is no whole number, or negative, or beyond 64 bits.
    """
    return None if limit is None else _whole(limit, "limit", "Pass a positive whole number, or None for all.")


def checked_version(version: Any) -> int | None:
    """The version of something; ``None`` is the newest, or all.

    Raises:
        ConfigurationError: When it is no whole number.
    """
    return None if version is None else _whole(version, "version", "Pass a whole number, or leave it out.")


def _whole(value: Any, name: str, hint: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 0 <= int(value) <= _MOST:
        raise ConfigurationError(f"{name} cannot be {shown(value)}", hint=hint)
    return int(value)


def checked_number(value: Any, name: str) -> float:
    """A real number, which may be infinite.

    Raises:
        ConfigurationError: When it is none, or NaN, or beyond float64.
    """
    hint = "Pass a number."
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, Decimal)):
        raise ConfigurationError(f"{name} cannot be {shown(value)}", hint=hint)
    try:
        real = float(value)
    except Exception as error:  # too large; and a subclass may raise anything
        raise ConfigurationError(f"{name} cannot be {shown(value)}", hint=hint) from error
    if math.isnan(real):
        raise ConfigurationError(f"{name} is NaN", hint=hint)
    return real


def checked_time(value: Any, name: str) -> float | None:
    """A bound of a range of time: unix seconds, which may be infinite; ``None`` is no bound.

    Raises:
        ConfigurationError: When it is no number, or NaN, or beyond float64.
    """
    if value is None:
        return None
    try:
        return checked_number(value, name)
    except ConfigurationError as error:
        is_datetime = hasattr(value, "timestamp")
        hint = "Pass its .timestamp()." if is_datetime else "Pass unix seconds as a number, or None for no bound."
        raise ConfigurationError(error.message, hint=hint) from None


def checked_text(value: Any, name: str) -> str:
    """A text, as plain ``str``.

    Raises:
        ConfigurationError: When it is none.
    """
    if type(value) is str:
        return value
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} cannot be {shown(value)}", hint="Pass a str.")
    return str.__str__(value)


def checked_filter(value: Any, name: str) -> str | None:
    """A text that is asked for; ``None`` is no restriction.

    Raises:
        ConfigurationError: When it is neither.
    """
    return None if value is None else checked_text(value, name)


def checked_path(value: Any, name: str) -> Path:
    """A path.

    Raises:
        ConfigurationError: When it is neither text nor a path of text.
    """
    try:
        path = os.fspath(value)
    except TypeError:
        path = None
    if not isinstance(path, str) or "\0" in path:
        raise ConfigurationError(f"{name} cannot be {shown(value)}", hint="Pass a path as str or pathlib.Path.")
    return Path(str.__str__(path))


def stored_text(value: Any, name: str) -> str:
    """A text that is to be stored, as plain ``str``.

    Raises:
        ValueNotStorableError: When it is none.
    """
    if not isinstance(value, str):
        raise ValueNotStorableError(f"{name} cannot be {shown(value)}", hint="Pass a str.")
    return str.__str__(value)


def checked_mapping(value: Any, name: str) -> dict[Any, Any]:
    """A mapping that is to be stored, as a new ``dict``; ``None`` is an empty one.

    Raises:
        ValueNotStorableError: When it is none.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueNotStorableError(f"{name} cannot be {shown(value)}", hint="Pass a dict.")
    return dict(value)


def checked_items(value: Any, name: str, of: Callable[[Any], Item]) -> list[Item]:
    """Several things that are to be stored; a text is none of them, although it can be iterated over.

    Args:
        value: What was given.
        name: The argument, for messages.
        of: Checks one of them.

    Raises:
        ValueNotStorableError: When it cannot be iterated over.
    """
    items: Iterator[Any] | None = None
    if not isinstance(value, (str, bytes, bytearray, Mapping)):
        with suppress(TypeError):
            items = iter(value)
    if items is None:
        raise ValueNotStorableError(f"{name} cannot be {shown(value)}", hint="Pass a list.")
    return [of(item) for item in items]
