r"""Samples saved one by one, many to a row, and back.

A row of kind ``LOOSE`` holds samples of one target, in order of arrival, that lie within ``SPAN_MS`` of its
``start_ms``. Payload (little-endian), after inflating it with zlib:

================  ==========================================================================================
bytes             content
================  ==========================================================================================
4                 number of samples, ``n``
8 x n             float64 bits of the values
4 x n             series ids (``series.id``)
2 x n             milliseconds after ``start_ms``
1 x n             Python type of each value (``sample_values``)
the rest          JSON object: position of the sample (decimal) to its metadata (as text of ``value_codec``);
                  empty when no sample has metadata
================  ==========================================================================================
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence.codecs.sample_values import TYPE_OF_CODE

__all__ = ["SPAN_MS", "LooseRow", "decode_loose", "encode_loose"]

SPAN_MS = 0xFFFF
_COUNT = struct.Struct("<I")
_BYTES_PER_SAMPLE = 8 + 4 + 2 + 1
_LARGEST_ROW = 256 << 20  # inflating stops here, whatever a damaged row claims


@dataclass(frozen=True, slots=True)
class LooseRow:
    """The samples of one row; the sequences have equal length.

    Args:
        values: float64 of each sample.
        series_ids: ``series.id`` of each.
        times_ms: Unix milliseconds of each.
        codes: Type byte of each (``sample_values``).
        metadata: Encoded metadata by position, for the samples that have any.
    """

    values: NDArray[np.float64]
    series_ids: NDArray[np.uint32]
    times_ms: NDArray[np.int64]
    codes: NDArray[np.uint8]
    metadata: dict[int, str]


def encode_loose(
    start_ms: int,
    times_ms: Sequence[int],
    series_ids: Sequence[int],
    values: Sequence[float],
    codes: Sequence[int],
    metadata: dict[int, str],
) -> bytes:
    """The payload of a row; every time must lie in ``start_ms .. start_ms + SPAN_MS``."""
    parts = [
        _COUNT.pack(len(values)),
        np.array(values, dtype="<f8").tobytes(),
        np.array(series_ids, dtype="<u4").tobytes(),
        (np.array(times_ms, dtype=np.int64) - start_ms).astype("<u2").tobytes(),
        bytes(codes),
    ]
    if metadata:
        parts.append(json.dumps(metadata, separators=(",", ":")).encode())
    return zlib.compress(b"".join(parts), 1)


def decode_loose(payload: bytes, start_ms: int) -> LooseRow:
    """The samples of a row.

    Raises:
        StoreDamagedError: When the payload does not have the documented form.
    """
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(payload, _LARGEST_ROW)
        (count,) = _COUNT.unpack_from(raw)
        if not inflater.eof or len(raw) < _COUNT.size + count * _BYTES_PER_SAMPLE:
            raise _damaged()
        at = _COUNT.size
        values = np.frombuffer(raw, dtype="<f8", count=count, offset=at)
        series_ids = np.frombuffer(raw, dtype="<u4", count=count, offset=at + 8 * count)
        offsets = np.frombuffer(raw, dtype="<u2", count=count, offset=at + 12 * count)
        codes = np.frombuffer(raw, dtype=np.uint8, count=count, offset=at + 14 * count)
        rest = raw[at + _BYTES_PER_SAMPLE * count :]
        metadata = {int(position): str(text) for position, text in json.loads(rest).items()} if rest else {}
    except (zlib.error, struct.error, ValueError, AttributeError) as error:
        if isinstance(error, StoreDamagedError):
            raise
        raise _damaged() from error
    if count and int(codes.max()) >= len(TYPE_OF_CODE):
        raise _damaged()
    return LooseRow(values, series_ids, offsets.astype(np.int64) + start_ms, codes, metadata)


def _damaged() -> StoreDamagedError:
    return StoreDamagedError(
        "the payload of single samples does not have its documented form",
        hint="The row is skipped; run the store's check.",
    )
