"""How the bytes of a stream are compressed, and how they are inflated without trusting them."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from vllm_monitor.errors import StoreDamagedError

__all__ = ["BlockMethod", "compress", "compress_best", "damaged", "inflate"]

_ZLIB_LEVEL = 6
_RAW_DEFLATE = -zlib.MAX_WBITS  # no header and no Adler-32: every stream has a CRC-32 of its own
_SMALLEST_WINDOW = 4096
_LZMA_MUST_SAVE_TO = 0.97
_BLOCK_BYTES = 2000  # fewer do not pay for the code at the start of a deflate block


class BlockMethod(IntEnum):
    """How a block is compressed; the numbers are those on disk."""

    STORED = 0
    ZLIB = 1
    LZMA = 2


def compress(sections: Sequence[bytes], method: BlockMethod) -> bytes:
    """The sections as one stream, compressed; an empty stream stays empty.

    Where a section ends, deflate may begin a new block: numbers of another kind deserve a code of their own.
    """
    data = b"".join(sections)
    if not data or method is BlockMethod.STORED:
        return data
    if method is BlockMethod.LZMA:
        return lzma.compress(data, lzma.FORMAT_RAW, filters=_lzma_filters(len(data)))
    # Short matches in noisy numbers cost more than they save: Z_FILTERED looks for long ones.
    deflater = zlib.compressobj(_ZLIB_LEVEL, zlib.DEFLATED, _RAW_DEFLATE, 9, zlib.Z_FILTERED)
    parts = []
    since_block = 0
    for section in sections:
        if since_block >= _BLOCK_BYTES:
            parts.append(deflater.flush(zlib.Z_BLOCK))
            since_block = 0
        parts.append(deflater.compress(section))
        since_block += len(section)
    parts.append(deflater.flush())
    return b"".join(parts)


def compress_best(sections: Sequence[bytes], wanted: BlockMethod) -> tuple[bytes, BlockMethod]:
    """The sections, compressed, and how: LZMA takes ten times as long to inflate, so it must be worth it."""
    if wanted is not BlockMethod.LZMA:
        return compress(sections, wanted), wanted
    quick, small = compress(sections, BlockMethod.ZLIB), compress(sections, BlockMethod.LZMA)
    if len(small) < _LZMA_MUST_SAVE_TO * len(quick):
        return small, BlockMethod.LZMA
    return quick, BlockMethod.ZLIB


def inflate(stored: bytes, raw_bytes: int, method: BlockMethod) -> bytes:
    """The bytes that :func:`compress` was given; never more than ``raw_bytes`` (and one) are made.

    Raises:
        StoreDamagedError: When ``stored`` does not inflate to exactly ``raw_bytes``.
    """
    if not raw_bytes or method is BlockMethod.STORED:
        raw = stored
    else:
        try:
            if method is BlockMethod.ZLIB:
                raw = zlib.decompressobj(_RAW_DEFLATE).decompress(stored, raw_bytes + 1)
            else:
                inflater = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_lzma_filters(raw_bytes))
                raw = inflater.decompress(stored, raw_bytes + 1)
        except (zlib.error, lzma.LZMAError, EOFError) as error:
            raise damaged("a stream cannot be inflated") from error
    if len(raw) != raw_bytes:
        raise damaged("a stream has another length than its directory says")
    return raw


def _lzma_filters(raw_bytes: int) -> list[dict[str, Any]]:
    """Small integers in byte planes: no alignment, but the literal before says something."""
    window = max(_SMALLEST_WINDOW, 1 << (raw_bytes - 1).bit_length())
    return [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": window, "lc": 4, "lp": 0, "pb": 0}]


def damaged(what: str) -> StoreDamagedError:
    """The error of every kind of damage to a block."""
    return StoreDamagedError(f"a block of samples is damaged: {what}", hint="It is skipped; run the store's check.")
