"""Python values as JSON text, and back to equal values of equal type.

Plain JSON where JSON can say it; a one-key object whose key starts with ``$`` where it cannot:

=====================================  ==========================================
value                                  text
=====================================  ==========================================
None, bool, str, finite float, list    as JSON
int                                    as JSON; ``{"$int": "0x..."}`` beyond 64 bits
NaN and infinities                     ``{"$float": "nan"}``, ``"inf"``, ``"-inf"``
str with lone surrogates               ``{"$str": base64}`` of UTF-8 with surrogates
dict                                   as JSON; ``{"$dict": [[key, value], ...]}`` when a key is no str or
                                       starts with ``$``
bytes, bytearray                       ``{"$bytes": base64}``, ``{"$bytearray": base64}``
tuple, set, frozenset                  ``{"$tuple": [...]}``, ``{"$set": [...]}``, ``{"$frozenset": [...]}``
pathlib paths                          ``{"$path": ["PosixPath", text]}``
datetime, date, time, timedelta        ``{"$datetime": [iso, fold, zone]}``, ``{"$date": iso}``,
                                       ``{"$time": [iso, fold]}``, ``{"$timedelta": [days, seconds, micros]}``
Decimal, Fraction, UUID, complex       ``{"$decimal": text}``, ``{"$fraction": text}``, ``{"$uuid": text}``,
                                       ``{"$complex": [real, imag]}``
Enum                                   ``{"$enum": [module, qualified name, member, value]}``
numpy scalars                          the equal Python number
:class:`Reference`                     ``{"$reference": number}``
=====================================  ==========================================

Decoding never imports and never runs code of the stored value: an enum is restored only when its class is
already loaded, else its plain value is returned. Subclasses of the types above come back as their base.

A value may be :data:`DEEPEST` levels deep, counted in the JSON text, tags included (a tuple is two levels): what is
accepted can be read again from any stack. Decoding has no such limit.
"""

from __future__ import annotations

import base64
import json
import math
import pathlib
import sys
import threading
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from typing import Any
from uuid import UUID

from vllm_monitor.errors import StoreDamagedError, ValueNotStorableError

__all__ = ["DEEPEST", "Reference", "decode_value", "encode_value", "too_deep"]

DEEPEST = 64
"""Levels of JSON that a value may be nested: containers, and the objects and arrays that tag them."""

_HINT = "Store numbers, text, bytes, lists, tuples, sets, dicts, paths, dates, enums or None."
_ARRAY_HINT = "Store its .tolist(); save_model keeps arrays as they are."
_PLAIN_INT_LIMIT = 1 << 63
_PATHS: dict[str, type[pathlib.PurePath]] = {
    "PosixPath": pathlib.Path,
    "WindowsPath": pathlib.Path,
    "PurePosixPath": pathlib.PurePosixPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
}


@dataclass(frozen=True, slots=True)
class Reference:
    """Stands in a value for something that is kept beside it, by its number: ``{"$reference": number}``."""

    number: int


def encode_value(value: Any, *, on_unknown: Callable[[Any], str] | None = None) -> str:
    """The canonical JSON text of a value.

    Args:
        value: Anything of the table above, nested at will.
        on_unknown: Called for an object that is not in the table; the text it returns is stored in its
            place. Without it such an object is an error.

    Raises:
        ValueNotStorableError: When the value, or something inside it, could not be given back unchanged.
    """
    tagged = _to_json(value, on_unknown, DEEPEST)
    text = json.dumps(tagged, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text.encode()
    return text


def too_deep(what: str = "the value") -> ValueNotStorableError:
    """The error for what is nested beyond :data:`DEEPEST`."""
    return ValueNotStorableError(
        f"{what} is nested too deeply, or contains itself", hint=f"Store a value of at most {DEEPEST} levels."
    )


def decode_value(text: str) -> Any:
    """The value of a text made by :func:`encode_value`.

    Raises:
        StoreDamagedError: When the text was not made by it.
    """
    try:
        return _from_json(json.loads(text, parse_constant=_refuse_constant))
    except RecursionError:
        return _decode_on_fresh_stack(text)  # the caller's own stack may be all but used up
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError) as error:
        raise _unreadable(error) from error


def _decode_on_fresh_stack(text: str) -> Any:
    """Decode in a thread of its own, whose stack is empty.

    Raises:
        StoreDamagedError: When it is too deep even so, or was not made by :func:`encode_value`.
    """
    answers: list[Any] = []

    def decode() -> None:
        try:
            answers.append((_from_json(json.loads(text, parse_constant=_refuse_constant)), None))
        except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RecursionError) as error:
            answers.append((None, error))

    thread = threading.Thread(target=decode, name="vllm-monitor-decode", daemon=True)
    thread.start()
    thread.join()
    value, error = answers[0]
    if error is not None:
        raise _unreadable(error) from error
    return value


def _unreadable(error: Exception) -> StoreDamagedError:
    return StoreDamagedError(
        f"a stored value cannot be read: {type(error).__name__}",
        hint="Run the store's check; the rest of the record is unharmed.",
    )


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _to_json(value: Any, on_unknown: Callable[[Any], str] | None, room: int) -> Any:
    """The value as JSON has it, within ``room`` levels."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, Enum):
        return _enum_to_json(value, on_unknown, room)
    for kinds, convert in _ENCODERS:
        if isinstance(value, kinds):
            return convert(value)
    levels = _levels_of(value)
    if levels > room:
        if on_unknown is None:
            raise too_deep()
        return _str_to_json(on_unknown(value))
    if isinstance(value, Mapping):
        return _dict_to_json(value, on_unknown, room)
    if isinstance(value, list):
        return [_to_json(item, on_unknown, room - levels) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [_to_json(item, on_unknown, room - levels) for item in value]}
    if isinstance(value, (set, frozenset)):
        items = [_to_json(item, on_unknown, room - levels) for item in value]
        tag = "$set" if isinstance(value, set) else "$frozenset"
        return {tag: sorted(items, key=lambda item: json.dumps(item, sort_keys=True))}
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        plain = value.item()
        if isinstance(plain, (bool, int, float, complex)):
            return _to_json(plain, on_unknown, room)
    if isinstance(value, Reference):
        return {"$reference": value.number}
    if on_unknown is not None:
        return _str_to_json(on_unknown(value))
    hint = _ARRAY_HINT if hasattr(value, "tolist") else _HINT
    raise ValueNotStorableError(f"an object of type {type(value).__name__} cannot be stored", hint=hint)


def _levels_of(value: Any) -> int:
    """Levels of JSON that a container itself takes."""
    if isinstance(value, Mapping):
        return 1 if _is_plain_dict(value) else 3
    if isinstance(value, list):
        return 1
    return 2 if isinstance(value, (tuple, set, frozenset)) else 0


def _str_to_json(value: str) -> Any:
    value = str.__str__(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        return {"$str": _base64(value.encode("utf-8", "surrogatepass"))}
    return value


def _int_to_json(value: int) -> Any:
    value = int(value)
    return value if -_PLAIN_INT_LIMIT <= value < _PLAIN_INT_LIMIT else {"$int": hex(value)}


def _float_to_json(value: float) -> Any:
    value = float(value)
    return value if math.isfinite(value) else {"$float": repr(value)}


def _datetime_to_json(value: datetime) -> Any:
    zone = value.tzinfo.key if isinstance(value.tzinfo, zoneinfo.ZoneInfo) else None
    return {"$datetime": [value.isoformat(), value.fold, zone]}


def _path_to_json(value: pathlib.PurePath) -> Any:
    for name in ("PosixPath", "WindowsPath", "PureWindowsPath"):
        if isinstance(value, getattr(pathlib, name)):
            return {"$path": [name, _str_to_json(str(value))]}
    return {"$path": ["PurePosixPath", _str_to_json(str(value))]}


def _is_plain_dict(value: Mapping[Any, Any]) -> bool:
    """Whether JSON can say its keys."""
    for key in value:
        if type(key) is not str or key.startswith("$"):
            return False
        if not key.isascii() and not isinstance(_str_to_json(key), str):
            return False
    return True


def _dict_to_json(value: Mapping[Any, Any], on_unknown: Callable[[Any], str] | None, room: int) -> Any:
    if _is_plain_dict(value):
        return {key: _to_json(item, on_unknown, room - 1) for key, item in value.items()}
    room -= 3
    return {"$dict": [[_to_json(k, on_unknown, room), _to_json(v, on_unknown, room)] for k, v in value.items()]}


def _enum_to_json(value: Enum, on_unknown: Callable[[Any], str] | None, room: int) -> Any:
    kind = type(value)
    if room < 2:
        if on_unknown is None:
            raise too_deep()
        return _str_to_json(on_unknown(value))
    return {"$enum": [kind.__module__, kind.__qualname__, value.name, _to_json(value.value, on_unknown, room - 2)]}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


_ENCODERS: tuple[tuple[type | tuple[type, ...], Callable[[Any], Any]], ...] = (
    (str, _str_to_json),
    (float, _float_to_json),
    (int, _int_to_json),
    (bytes, lambda value: {"$bytes": _base64(value)}),
    (bytearray, lambda value: {"$bytearray": _base64(bytes(value))}),
    (pathlib.PurePath, _path_to_json),
    (datetime, _datetime_to_json),
    (date, lambda value: {"$date": value.isoformat()}),
    (time, lambda value: {"$time": [value.isoformat(), value.fold]}),
    (timedelta, lambda value: {"$timedelta": [value.days, value.seconds, value.microseconds]}),
    (Decimal, lambda value: {"$decimal": str(value)}),
    (Fraction, lambda value: {"$fraction": [_int_to_json(value.numerator), _int_to_json(value.denominator)]}),
    (UUID, lambda value: {"$uuid": str(value)}),
    (complex, lambda value: {"$complex": [_float_to_json(value.real), _float_to_json(value.imag)]}),
)


def _from_json(value: Any) -> Any:
    """The value of parsed JSON; takes one frame of the stack for each container."""
    if isinstance(value, list):
        return list(map(_from_json, value))
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        tag, content = next(iter(value.items()))
        if tag in _SEQUENCES:
            return _SEQUENCES[tag](map(_from_json, content))
        if tag.startswith("$"):
            return _DECODERS[tag](content)
    return dict(zip(value, map(_from_json, value.values()), strict=True))


_SEQUENCES: dict[str, Callable[[Iterable[Any]], Any]] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}


def _datetime_from_json(content: Any) -> datetime:
    text, fold, zone = content
    moment = datetime.fromisoformat(text).replace(fold=fold)
    if zone is None:
        return moment
    try:
        return moment.replace(tzinfo=zoneinfo.ZoneInfo(zone))
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        return moment  # this host does not know the zone; the offset still names the same instant


def _enum_from_json(content: Any) -> Any:
    module, qualified_name, name, plain = content
    found: Any = sys.modules.get(module)
    for part in qualified_name.split("."):
        # vars() rather than getattr(): a lazy module or a descriptor could run code.
        found = vars(found).get(part) if found is not None and hasattr(found, "__dict__") else None
    if isinstance(found, type) and issubclass(found, Enum):
        member = found.__members__.get(name)
        if member is not None:
            return member
        if issubclass(found, Flag) and isinstance(plain, int):
            return found(plain)
    return _from_json(plain)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$int": lambda content: int(content, 16),
    "$float": float,
    "$str": lambda content: base64.b64decode(content, validate=True).decode("utf-8", "surrogatepass"),
    "$dict": lambda content: {_from_json(key): _from_json(item) for key, item in content},
    "$bytes": lambda content: base64.b64decode(content, validate=True),
    "$bytearray": lambda content: bytearray(base64.b64decode(content, validate=True)),
    "$path": lambda content: _PATHS[content[0]](_from_json(content[1])),
    "$datetime": _datetime_from_json,
    "$date": date.fromisoformat,
    "$time": lambda content: time.fromisoformat(content[0]).replace(fold=content[1]),
    "$timedelta": lambda content: timedelta(*content),
    "$decimal": Decimal,
    "$fraction": lambda content: Fraction(_from_json(content[0]), _from_json(content[1])),
    "$uuid": UUID,
    "$complex": lambda content: complex(_from_json(content[0]), _from_json(content[1])),
    "$enum": _enum_from_json,
    "$reference": lambda content: Reference(int(content)),
}
