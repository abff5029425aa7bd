"""The element type of a numpy array as a value that can be stored, and back. Nothing is ever evaluated."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from vllm_monitor.errors import StoreDamagedError, ValueNotStorableError

__all__ = ["describe_type", "type_of_description"]

_PLAIN = re.compile(r"[<>|](?:[biufcSUV][0-9]{1,10}|[mM]8(?:\[[0-9]{0,10}[a-zA-Z]{1,2}\])?)")
_MOST_FIELDS = 10_000
_MOST_BYTES = 1 << 40
_DEEPEST = 20
_HINT = "Convert it, for example with array.astype(float), array.tolist() or str."


def describe_type(dtype: np.dtype[Any]) -> Any:
    """A text such as ``<f8``, or a mapping for a structured type.

    Raises:
        ValueNotStorableError: When arrays of it hold Python objects, or more than their bytes.
    """
    if dtype.metadata is not None:
        raise ValueNotStorableError(
            "an array whose type carries metadata cannot be stored", hint="Store the metadata beside a plain array."
        )
    if dtype.hasobject:
        raise ValueNotStorableError(f"an array of type {dtype!r} cannot be stored", hint=_HINT)
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"of": describe_type(base), "shape": list(shape)}
    if dtype.names is not None and dtype.fields is not None:
        parts = [dtype.fields[name] for name in dtype.names]
        titles = [part[2] if len(part) > 2 else None for part in parts]
        description: dict[str, Any] = {
            "names": list(dtype.names),
            "formats": [describe_type(part[0]) for part in parts],
            "offsets": [part[1] for part in parts],
            "itemsize": dtype.itemsize,
        }
        if any(title is not None for title in titles):
            description["titles"] = titles
        if dtype.isalignedstruct:
            description["aligned"] = True
        return description
    if not _PLAIN.fullmatch(dtype.str):
        raise ValueNotStorableError(f"an array of type {dtype!r} cannot be stored", hint=_HINT)
    return dtype.str


def type_of_description(description: Any) -> np.dtype[Any]:
    """The type that :func:`describe_type` described.

    Raises:
        StoreDamagedError: When it describes none, or one that is not stored.
    """
    try:
        dtype = _type_of(description, 0)
    except (TypeError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise _damaged() from error
    if dtype.hasobject or dtype.itemsize > _MOST_BYTES:
        raise _damaged()
    return dtype


def _type_of(description: Any, depth: int) -> np.dtype[Any]:
    if depth > _DEEPEST:
        raise _damaged()
    if isinstance(description, str):
        if not _PLAIN.fullmatch(description):
            raise _damaged()
        return np.dtype(description)
    if "of" in description:
        return np.dtype((_type_of(description["of"], depth + 1), tuple(map(int, description["shape"]))))
    if len(description["names"]) > _MOST_FIELDS:
        raise _damaged()
    fields: dict[str, Any] = {
        "names": description["names"],
        "formats": [_type_of(part, depth + 1) for part in description["formats"]],
        "offsets": description["offsets"],
        "itemsize": description["itemsize"],
    }
    if "titles" in description:
        fields["titles"] = description["titles"]
    make: Any = np.dtype
    made: np.dtype[Any] = make(fields, align=bool(description.get("aligned", False)))
    return made


def _damaged() -> StoreDamagedError:
    return StoreDamagedError("a stored array has a type that is none", hint="Load an earlier version of the model.")
