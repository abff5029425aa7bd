"""Rows of ``blocks`` and ``rollups``: what a sealed payload belongs to, and the checksum over both."""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

from vllm_monitor.errors import StoreDamagedError

__all__ = ["BlockKind", "BlockRow", "RollupRow", "Tier"]

_BLOCK_HEADER = struct.Struct("<11q")
_ROLLUP_HEADER = struct.Struct("<9q")


class BlockKind(IntEnum):
    """Whole scrapes (``blocks.codec``), or samples saved one by one (``blocks.loose_block``)."""

    SCRAPES = 1
    LOOSE = 2


class Tier(IntEnum):
    """Sealed once, or joined and compressed again when it had become old."""

    SEALED = 0
    COLD = 1


class BlockRow(NamedTuple):
    """A row of ``blocks``; the fields are its columns.

    ``start_ms`` and ``end_ms`` are the least and the greatest time of its samples. A sequence is the ``metrics.id``
    that a row had in the store where it first arrived (``origin_id``): it names the scrape across stores.
    ``scrapes`` counts rows of the matrix (for loose samples: rows of ``metrics``), ``layout_id`` is 0 for those.
    """

    id: int
    kind: int
    tier: int
    stream_id: int
    origin_id: int
    layout_id: int
    start_ms: int
    end_ms: int
    first_sequence: int
    last_sequence: int
    scrapes: int
    samples: int
    checksum: int
    payload: bytes

    def expected_checksum(self) -> int:
        """CRC-32 of the columns from ``kind`` to ``samples`` (as little-endian int64), then the payload."""
        return zlib.crc32(self.payload, zlib.crc32(_BLOCK_HEADER.pack(*self[1:12])))

    def summed(self) -> BlockRow:
        """The same row with its checksum."""
        return self._replace(checksum=self.expected_checksum())

    def verify(self) -> None:
        """Check it against its checksum.

        Raises:
            StoreDamagedError: When it does not match.
        """
        if self.checksum != self.expected_checksum():
            raise StoreDamagedError(f"block {self.id} does not match its checksum", hint="Run vllm-monitor check.")


class RollupRow(NamedTuple):
    """A row of ``rollups``; the fields are its columns. ``samples`` counts the raw samples behind it."""

    id: int
    step_seconds: int
    tier: int
    stream_id: int
    origin_id: int
    layout_id: int
    start_ms: int
    end_ms: int
    buckets: int
    samples: int
    checksum: int
    payload: bytes

    def expected_checksum(self) -> int:
        """CRC-32 of the columns from ``step_seconds`` to ``samples`` (as little-endian int64), then the payload."""
        return zlib.crc32(self.payload, zlib.crc32(_ROLLUP_HEADER.pack(*self[1:10])))

    def summed(self) -> RollupRow:
        """The same row with its checksum."""
        return self._replace(checksum=self.expected_checksum())

    def verify(self) -> None:
        """Check it against its checksum.

        Raises:
            StoreDamagedError: When it does not match.
        """
        if self.checksum != self.expected_checksum():
            raise StoreDamagedError(f"roll-up {self.id} does not match its checksum", hint="Run vllm-monitor check.")
