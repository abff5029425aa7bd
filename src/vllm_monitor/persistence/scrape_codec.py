r"""One scrape as a small row, and back.

A row of kind ``KEYFRAME`` stands alone; a row of kind ``DELTA`` builds on the row before it in its run (the
scrapes that one process stored for one stream with one layout), named by ``previous_id``. The payload of both
is one zlib stream (level 1) of:

====================  =====================================================================================
bytes                 content
====================  =====================================================================================
``ceil(columns / 8)``  bitmap of the columns that follow, first column in the highest bit of the first byte
``8`` per set bit      float64 bits of the column XOR those of the previous row (a keyframe: XOR zero),
                       little-endian
====================  =====================================================================================

Bits are kept whatever they mean: NaN payloads, infinities and the sign of zero survive. A run gets a new
keyframe every ``KEYFRAME_INTERVAL`` rows, so damage stays local and reading from the middle stays cheap.
"""

from __future__ import annotations

import struct
import zlib
from array import array

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.errors import StoreDamagedError

__all__ = [
    "DELTA",
    "KEYFRAME",
    "KEYFRAME_INTERVAL",
    "LOOSE",
    "Bits",
    "bits_of",
    "decode_scrape",
    "encode_scrape",
    "row_checksum",
]

KEYFRAME = 1
DELTA = 2
LOOSE = 3
KEYFRAME_INTERVAL = 60

Bits = NDArray[np.uint64]

_LEVEL = 1  # level 6 saves 12 % of what is sealed away within the hour, for twice the time
_HEADER = struct.Struct("<6q")


def bits_of(values: array[float]) -> Bits:
    """The float64 bits of a scrape, without a copy."""
    return np.frombuffer(values, dtype="<u8") if len(values) else np.empty(0, dtype="<u8")


def encode_scrape(bits: Bits, previous: Bits | None) -> bytes:
    """The payload of a row; ``previous`` is ``None`` for a keyframe."""
    changes = bits if previous is None else np.bitwise_xor(bits, previous)
    changed = changes != 0
    return zlib.compress(np.packbits(changed).tobytes() + changes[changed].tobytes(), _LEVEL)


def decode_scrape(payload: bytes, columns: int, previous: Bits | None) -> Bits:
    """The float64 bits of a row.

    Raises:
        StoreDamagedError: When the payload does not have the documented form.
    """
    bitmap_bytes = (columns + 7) // 8
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(payload, bitmap_bytes + 8 * columns + 1)
    except zlib.error as error:
        raise _damaged("is not a zlib stream") from error
    changed = np.unpackbits(np.frombuffer(raw[:bitmap_bytes], dtype=np.uint8), count=columns).astype(bool)
    if not inflater.eof or len(raw) < bitmap_bytes or len(raw) - bitmap_bytes != 8 * int(changed.sum()):
        raise _damaged("has the wrong length")
    bits = np.zeros(columns, dtype="<u8") if previous is None else previous.copy()
    bits[changed] ^= np.frombuffer(raw, dtype="<u8", offset=bitmap_bytes)
    return bits


def row_checksum(
    kind: int, stream_id: int, layout_id: int, previous_id: int, start_ms: int, end_ms: int, payload: bytes
) -> int:
    """CRC-32 of the columns that give a payload its meaning (as six little-endian int64), then the payload."""
    header = _HEADER.pack(kind, stream_id, layout_id, previous_id, start_ms, end_ms)
    return zlib.crc32(payload, zlib.crc32(header))


def _damaged(what: str) -> StoreDamagedError:
    return StoreDamagedError(f"the payload of a scrape {what}", hint="The row is skipped; run the store's check.")
