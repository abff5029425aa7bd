r"""One scrape as a small row, and back.

A row of kind ``KEYFRAME`` stands alone; a row of kind ``DELTA`` builds on the row before it in its run (the
scrapes that one process stored for one stream with one layout), named by ``previous_id``. The payload of both is

====================  =====================================================================================
bytes                 content
====================  =====================================================================================
1                     ``1``: the form of what follows
``ceil(columns / 8)``  bitmap of the columns that follow, first column in the highest bit of the first byte
1 per set bit          which of the column's eight bytes follow, the lowest byte in the highest bit
the rest              these bytes, column by column, of the float64 bits of the column XOR those of the
                       previous row (a keyframe: XOR zero), little-endian
====================  =====================================================================================

Bits are kept whatever they mean: NaN payloads, infinities and the sign of zero survive. A run gets a new
keyframe every ``KEYFRAME_INTERVAL`` rows, so damage stays local and reading from the middle stays cheap.

Leaving zero bytes out costs a fifth of the time that zlib takes and gives rows half as large again, which are sealed
away within the hour. Rows of version 0.1 are one zlib stream of the bitmap and all eight bytes of each column in it;
they are still read (a zlib stream never begins with a 1).
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Sequence

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
    "decode_run",
    "decode_scrape",
    "encode_scrape",
    "row_checksum",
]

KEYFRAME = 1
DELTA = 2
LOOSE = 3
KEYFRAME_INTERVAL = 60

Bits = NDArray[np.uint64]

_HEADER = struct.Struct("<6q")


def bits_of(values: array[float]) -> Bits:
    """The float64 bits of a scrape, without a copy."""
    return np.frombuffer(values, dtype="<u8") if len(values) else np.empty(0, dtype="<u8")


def encode_scrape(bits: Bits, previous: Bits | None) -> bytes:
    """The payload of a row; ``previous`` is ``None`` for a keyframe."""
    changes = (bits if previous is None else np.bitwise_xor(bits, previous)).tobytes()
    # packbits takes whatever is not zero for a one: first bytes within columns, then columns.
    masks = np.packbits(np.frombuffer(changes, dtype=np.uint8))
    bitmap = np.packbits(masks).tobytes()
    return b"".join((b"\x01", bitmap, masks.tobytes().translate(None, b"\0"), changes.translate(None, b"\0")))


def decode_scrape(payload: bytes, columns: int, previous: Bits | None) -> Bits:
    """The float64 bits of a row.

    Raises:
        StoreDamagedError: When the payload does not have the documented form.
    """
    changes: Bits = decode_run([payload], columns)[0]
    if previous is not None:
        changes ^= previous
    return changes


def decode_run(payloads: Sequence[bytes], columns: int) -> Bits:
    """What changed in each of some rows with the same columns, as (rows, columns); much faster than one by one.

    Rows that follow each other are turned into scrapes by ``np.bitwise_xor.accumulate``.

    Raises:
        StoreDamagedError: When a payload does not have the documented form.
    """
    payloads = [payload if payload[:1] == b"\x01" else _from_zlib(payload, columns) for payload in payloads]
    start = 1 + (columns + 7) // 8
    bitmaps = np.frombuffer(b"".join([payload[1:start] for payload in payloads]), dtype=np.uint8)
    if bitmaps.size != len(payloads) * (start - 1):
        raise _damaged("is too short")
    bitmaps = bitmaps.reshape(len(payloads), start - 1)
    changed = np.unpackbits(bitmaps, axis=1, count=columns).view(bool)
    ends = (start + changed.sum(axis=1)).tolist()
    masks = b"".join([payload[start:end] for payload, end in zip(payloads, ends, strict=True)])
    rests = [payload[end:] for payload, end in zip(payloads, ends, strict=True)]
    if len(masks) != sum(ends) - start * len(payloads):
        raise _damaged("has the wrong length")
    there = np.unpackbits(np.frombuffer(masks, dtype=np.uint8)).view(bool)
    raw = np.zeros(len(there), dtype=np.uint8)
    taken = b"".join(rests)
    if len(taken) != int(np.count_nonzero(there)):
        raise _damaged("has the wrong length")
    raw[there] = np.frombuffer(taken, dtype=np.uint8)
    changes = np.zeros(changed.shape, dtype="<u8")
    changes[changed] = raw.view("<u8")
    return changes


def _from_zlib(payload: bytes, columns: int) -> bytes:
    """A row of version 0.1 in the form of today."""
    bitmap_bytes = (columns + 7) // 8
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(payload, bitmap_bytes + 8 * columns + 1)
    except zlib.error as error:
        raise _damaged("has an unknown form") from error
    changed = np.unpackbits(np.frombuffer(raw[:bitmap_bytes], dtype=np.uint8), count=columns).astype(bool)
    if not inflater.eof or len(raw) < bitmap_bytes or len(raw) - bitmap_bytes != 8 * int(changed.sum()):
        raise _damaged("has the wrong length")
    bits = np.zeros(columns, dtype="<u8")
    bits[changed] = np.frombuffer(raw, dtype="<u8", offset=bitmap_bytes)
    return encode_scrape(bits, None)


def row_checksum(
    kind: int, stream_id: int, layout_id: int, previous_id: int, start_ms: int, end_ms: int, payload: bytes
) -> int:
    """CRC-32 of the columns that give a payload its meaning (as six little-endian int64), then the payload."""
    header = _HEADER.pack(kind, stream_id, layout_id, previous_id, start_ms, end_ms)
    return zlib.crc32(payload, zlib.crc32(header))


def _damaged(what: str) -> StoreDamagedError:
    return StoreDamagedError(f"the payload of a scrape {what}", hint="The row is skipped; run the store's check.")
