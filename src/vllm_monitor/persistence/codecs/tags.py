"""The tags of samples: what is accepted, and how they name a series.

A tag's value is a text, a number, a flag or nothing. Stores of earlier versions may hold others (lists, dicts): in
the identity of a series these stand as their JSON text, so that whatever was accepted once can be compared,
sealed and listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from vllm_monitor.errors import ConfigurationError, ValueNotStorableError
from vllm_monitor.persistence.codecs.arguments import shown
from vllm_monitor.persistence.codecs.value_codec import encode_value

__all__ = ["checked_tags", "identity_labels", "is_same_tag", "sorted_tags", "wanted_tags"]

_HINT = "Pass a dict whose names are str and whose values are str, int, float, bool or None."
_PLAIN = frozenset((str, int, float, bool, type(None)))


def checked_tags(tags: Any) -> dict[str, Any]:
    """The tags of a sample, as a new dictionary of plain values; ``None`` is no tags.

    Subclasses and numpy scalars become the plain value that they equal; a text that is a member of an enum stays.

    Raises:
        ValueNotStorableError: When it is no mapping, a name is no text, or a value is none of those above.
    """
    if tags is None:
        return {}
    if not isinstance(tags, Mapping):
        raise ValueNotStorableError(f"tags cannot be {shown(tags)}", hint=_HINT)
    return {_plain_name(name): _plain_value(name, value) for name, value in tags.items()}


def _plain_name(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueNotStorableError(f"a tag cannot be named {shown(name)}", hint=_HINT)
    return str.__str__(name)


def _plain_value(name: str, value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (str, int, float)) and isinstance(value, Enum):
        encode_value(value)
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 and hasattr(value, "dtype"):
        value = value.item()
    for kind in (int, float):
        if isinstance(value, kind):
            return value if type(value) is bool else kind(value)
    raise ValueNotStorableError(f"the tag {str.__str__(name)!r} cannot be {shown(value)}", hint=_HINT)


def wanted_tags(tags: Any) -> dict[Any, Any] | None:
    """The tags that a question asks for; ``None`` is no restriction.

    Raises:
        ConfigurationError: When it is no mapping, or holds what no tag can be.
    """
    if tags is None:
        return None
    if not isinstance(tags, Mapping):
        raise ConfigurationError(f"tags cannot be {shown(tags)}", hint="Pass a dict of names and values.")
    wanted = dict(tags)
    try:
        encode_value(wanted)
    except ValueNotStorableError as error:
        raise ConfigurationError(f"tags: {error.message}", hint=_HINT) from None
    return wanted


def is_same_tag(found: Any, wanted: Any) -> bool:
    """Whether two values of a tag are the same, by type as well: 1, 1.0 and True are not; NaN is NaN."""
    if type(found) is str and type(wanted) is str:
        return found == wanted
    return encode_value(found) == encode_value(wanted)


def sorted_tags(tags: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Pairs of name and value, by name; names of earlier versions need not be text."""
    return sorted(tags.items(), key=lambda pair: str(pair[0]))


def identity_labels(pairs: Iterable[tuple[Any, Any]]) -> tuple[tuple[Any, Any], ...]:
    """Tags as they name a series: hashable, with JSON text in place of what may not be."""
    return tuple(
        (name, value if type(value) in _PLAIN or isinstance(value, Enum) else encode_value(value))
        for name, value in pairs
    )
