"""A learned model as text and arrays: values as JSON of ``value_codec``, arrays as one safetensors file.

The text is the JSON of an object::

    {"format": 1,
     "packing": null or "zlib",    # how the bytes of the arrays are compressed
     "size": 1234,                 # of the safetensors file itself
     "arrays": [{"type": "<f8", "shape": [3, 2]}, ...],
     "data": ...}                  # the model; {"$reference": 0} stands for the first array

Array number ``n`` is the tensor named ``n``. Types that safetensors does not have in numpy (other byte orders, texts,
times, structures, complex numbers) are tensors of their bytes. Loading never executes anything.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.errors import StoreDamagedError, ValueNotStorableError
from vllm_monitor.persistence.codecs.value_codec import DEEPEST, Reference, decode_value, encode_value, too_deep
from vllm_monitor.persistence.models.array_types import describe_type, type_of_description

__all__ = ["EncodedModel", "decode_model", "encode_model"]

_FORMAT = 1
_NATIVE = ("<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "|i1", "<u8", "<u4", "<u2", "|u1", "|b1")
_PLAIN = (str, float, int, bool, type(None))
_PACK_BYTES = 4096
_PROBE_BYTES = 1 << 20
_WORTH_RATIO = 0.9
"""Arrays are compressed when that leaves at most this share: a file that other tools can read is worth something."""
_PACK_LEVEL = 3
_LARGEST_HEADER_BYTES = 100 << 20
_HINTS = {
    "torch": "Store tensor.detach().cpu().numpy() instead of the tensor.",
    "jax": "Store numpy.asarray(array) instead.",
    "tensorflow": "Store tensor.numpy() instead of the tensor.",
    "pandas": "Store frame.to_dict('list') or frame.to_numpy() instead.",
    "sklearn": "Store the arrays that the estimator has learned instead of the estimator.",
}


@dataclass(frozen=True, slots=True)
class EncodedModel:
    """A model ready to be stored: the text, and the bytes of its arrays (empty when it has none)."""

    structure: str
    arrays: bytes
    packed: bool


@dataclass(frozen=True, slots=True)
class _Detached:
    """An array that was taken out of a model, and the tensor that it becomes."""

    type_text: Any
    shape: tuple[int, ...]
    tensor: NDArray[Any]


def encode_model(model_data: Any, *, compress: bool) -> EncodedModel:
    """The text and the arrays of a model.

    Args:
        model_data: Arrays, tables, and whatever ``value_codec`` stores, nested at will.
        compress: Whether the arrays may be compressed; they are when that makes them a good deal smaller.

    Raises:
        ValueNotStorableError: When something in it could not be given back unchanged.
    """
    arrays: list[_Detached] = []
    data = _detach(model_data, arrays, "model_data", 0)
    plain = _to_safetensors([array.tensor for array in arrays])
    stored = _packed(plain) if compress else plain
    structure = encode_value(
        {
            "format": _FORMAT,
            "packing": "zlib" if stored is not plain else None,
            "size": len(plain),
            "arrays": [{"type": array.type_text, "shape": list(array.shape)} for array in arrays],
            "data": data,
        }
    )
    return EncodedModel(structure, stored, stored is not plain)


def decode_model(structure: str, arrays: bytes) -> Any:
    """The model.

    Raises:
        StoreDamagedError: When text and arrays were not made by :func:`encode_model`, or not together.
    """
    whole = decode_value(structure)
    try:
        if whole["format"] != _FORMAT:
            raise _damaged(f"its format is {whole['format']!r}")
        size, descriptions = int(whole["size"]), list(whole["arrays"])
        if whole["packing"] not in (None, "zlib"):
            raise _damaged(f"its packing is {whole['packing']!r}")
        plain = arrays if whole["packing"] is None else _unpacked(arrays, size)
        if len(plain) != size:
            raise _damaged("the size of its arrays is not what it says")
        found = _from_safetensors(plain, descriptions)
        return _attach(whole["data"], found)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, RecursionError) as error:
        raise _damaged(f"{type(error).__name__} in its structure") from error


def _detach(value: Any, arrays: list[_Detached], where: str, depth: int) -> Any:
    """The value with references in place of its arrays, which are added to ``arrays``."""
    if depth > DEEPEST:
        raise too_deep("model_data")
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.ndarray):
        if type(value) not in (np.ndarray, np.memmap):
            raise ValueNotStorableError(
                f"{where} is a {type(value).__name__}", hint="Store numpy.asarray() of it, and its mask if it has one."
            )
        try:
            arrays.append(_detached(value))
        except ValueNotStorableError as error:
            raise ValueNotStorableError(f"{where}: {error.message}", hint=error.hint) from None
        return Reference(len(arrays) - 1)
    if isinstance(value, Mapping):
        return {key: _detach(item, arrays, f"{where}[{key!r:.40}]", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_detach(item, arrays, f"{where}[{at}]", depth + 1) for at, item in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, Reference):
        raise ValueNotStorableError(f"{where} is a Reference", hint="Store what it stands for.")
    try:
        encode_value(value)
    except ValueNotStorableError as error:
        room = type(value).__module__.partition(".")[0]
        hint = _HINTS.get(room, error.hint)
        raise ValueNotStorableError(f"{where} is a {type(value).__name__}, which cannot be stored", hint=hint) from None
    return value


def _attach(value: Any, arrays: list[NDArray[Any]]) -> Any:
    if isinstance(value, Reference):
        if value.number < 0:
            raise _damaged("it refers to an array that is not there")
        return arrays[value.number]
    if isinstance(value, dict):
        return {key: _attach(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_attach(item, arrays) for item in value]
    if isinstance(value, tuple):
        return tuple(_attach(item, arrays) for item in value)
    return value


def _detached(array: NDArray[Any]) -> _Detached:
    description = describe_type(array.dtype)
    if description in _NATIVE:
        tensor = np.array(array, order="C", copy=True, subok=False)
    else:
        tensor = np.frombuffer(array.tobytes(), np.uint8)
    return _Detached(description, array.shape, tensor)


def _to_safetensors(tensors: list[NDArray[Any]]) -> bytes:
    if not tensors:
        return b""
    from safetensors.numpy import save  # noqa: PLC0415  # only who keeps models pays for it

    return save({str(number): tensor for number, tensor in enumerate(tensors)})


def _from_safetensors(data: bytes, descriptions: list[Any]) -> list[NDArray[Any]]:
    if not descriptions:
        if data:
            raise _damaged("it has arrays that it does not name")
        return []
    from safetensors import SafetensorError  # noqa: PLC0415  # as above
    from safetensors.numpy import load  # noqa: PLC0415

    _check_header(data)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _damaged(f"its arrays are no safetensors file: {error}") from error
    if sorted(tensors) != sorted(map(str, range(len(descriptions)))):
        raise _damaged("its arrays are not those that it names")
    return [
        _array_of(tensors[str(number)], type_of_description(description["type"]), tuple(description["shape"]))
        for number, description in enumerate(descriptions)
    ]


def _array_of(tensor: NDArray[Any], dtype: np.dtype[Any], shape: tuple[Any, ...]) -> NDArray[Any]:
    count = 1
    for length in shape:
        if type(length) is not int or length < 0:
            raise _damaged("an array has a shape that is none")
        count *= length
    native = dtype.str in _NATIVE and dtype.names is None
    if tensor.nbytes != count * dtype.itemsize or tensor.dtype != (dtype if native else np.uint8):
        raise _damaged("an array is not what it says")
    return np.ndarray(shape, dtype, buffer=bytearray(tensor.tobytes()))  # may be changed, as what was saved


def _check_header(data: bytes) -> None:
    """Refuse what a reader might understand in two ways: a header that says the same thing twice."""
    if len(data) < struct.calcsize("<Q"):
        raise _damaged("its arrays are cut off")
    (size,) = struct.unpack_from("<Q", data)
    if size > min(len(data) - 8, _LARGEST_HEADER_BYTES):
        raise _damaged("the header of its arrays is larger than the file")
    try:
        json.loads(data[8 : 8 + size].decode(), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"the header of its arrays cannot be read: {error}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        message = "a key is there twice"
        raise ValueError(message)
    return found


def _packed(plain: bytes) -> bytes:
    if len(plain) <= _PACK_BYTES:
        return plain
    probe = plain[:_PROBE_BYTES]
    if len(zlib.compress(probe, _PACK_LEVEL)) > len(probe) * _WORTH_RATIO:
        return plain
    packed = zlib.compress(plain, _PACK_LEVEL)
    return packed if len(packed) <= len(plain) * _WORTH_RATIO else plain


def _unpacked(packed: bytes, size: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(packed, max(size, 0) + 1)
    except (zlib.error, MemoryError) as error:
        raise _damaged("its arrays cannot be inflated") from error
    if not inflater.eof or inflater.unused_data:
        raise _damaged("its arrays are cut off, or longer than it says")
    return plain


def _damaged(what: str) -> StoreDamagedError:
    return StoreDamagedError(
        f"a stored model is damaged: {what}", hint="Load an earlier version of it; run vllm-monitor check."
    )
