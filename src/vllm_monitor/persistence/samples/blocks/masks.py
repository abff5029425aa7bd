"""Which rows of a column matter: masks that many columns share, stored once per block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.persistence.samples.blocks.method import damaged

__all__ = ["ALL_ROWS", "MASK_TYPE", "MaskTable", "MaskWriter"]

MASK_TYPE = np.dtype([("reference", "<u4"), ("count", "<u4")])
"""The earlier mask, counted from 1, that one is stored as a difference to (0: none), and the rows that it takes."""

ALL_ROWS = 0
"""The mask that takes every row; the others count from 1."""

_MOST_COMPARED = 1024  # with each other

Mask = NDArray[np.bool_]


class MaskWriter:
    """Collects the masks of a block; equal ones get one number."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._masks: list[Mask] = []

    def number_of(self, mask: Mask) -> int:
        """The number of a mask, one entry per row of the block."""
        key = np.packbits(mask).tobytes()
        number = self._numbers.get(key)
        if number is None:
            number = len(self._masks) + 1
            self._numbers[key] = number
            self._masks.append(mask)
        return number

    def to_bytes(self) -> tuple[NDArray[Any], bytes]:
        """The table of the masks, and their packed differences."""
        table = np.zeros(len(self._masks), dtype=MASK_TYPE)
        if not self._masks:
            return table, b""
        masks = np.array(self._masks)
        if len(masks) > _MOST_COMPARED:
            return table, np.packbits(masks, axis=1).tobytes()
        as_float = masks.astype(np.float32)
        ones = as_float.sum(axis=1)
        distances = ones[:, None] + ones[None, :] - 2 * (as_float @ as_float.T)
        table["count"] = masks.sum(axis=1)
        stored = [masks[0]]
        for number in range(1, len(masks)):
            nearest = int(distances[number, :number].argmin())
            if distances[number, nearest] < min(ones[number], masks.shape[1] - ones[number]):
                table["reference"][number] = nearest + 1
                stored.append(masks[number] ^ masks[nearest])
            else:
                stored.append(masks[number])
        return table, np.packbits(np.array(stored), axis=1).tobytes()


class MaskTable:
    """The masks of a block; each is unpacked when it is first asked for.

    Args:
        table: ``MASK_TYPE``, one row per mask.
        packed: Gives the packed differences.
        length: Rows of the block.
    """

    def __init__(self, table: NDArray[Any], packed: Callable[[], bytes], length: int) -> None:
        self._references: list[int] = table["reference"].tolist()
        self._packed = packed
        self._length = length
        self._bits: dict[int, NDArray[np.uint8]] = {}
        self._moving: dict[int, NDArray[np.int64]] = {}
        self.counts = np.concatenate(([max(0, length - 1)], table["count"])).astype(np.int64)
        """How many rows move by each mask; no column moves in the first row."""

    def __getitem__(self, number: int) -> Mask:
        """One entry per row of the block.

        Raises:
            StoreDamagedError: When the masks contradict each other.
        """
        if number == ALL_ROWS:
            return np.ones(self._length, dtype=bool)
        mask = np.unpackbits(self._bits_of(number), count=self._length).astype(bool)
        if int(np.count_nonzero(mask)) != int(self.counts[number]):
            raise damaged("a mask has another number of rows than it says")
        return mask

    def moving_rows(self, number: int) -> NDArray[np.int64]:
        """The moves (0 is the one into the second row) that a mask takes."""
        known = self._moving.get(number)
        if known is None:
            known = np.flatnonzero(self[number][1:])
            self._moving[number] = known
        return known

    def _bits_of(self, number: int) -> NDArray[np.uint8]:
        chain = [number]
        while chain[-1] not in self._bits:
            reference = self._references[chain[-1] - 1]
            if reference >= chain[-1]:
                raise damaged("a mask refers to a later one")
            if not reference:
                break
            chain.append(reference)
        packed, row_bytes = self._packed(), (self._length + 7) // 8
        if len(packed) != row_bytes * len(self._references):
            raise damaged("its masks have the wrong size")
        for link in reversed(chain):
            if link not in self._bits:
                own = np.frombuffer(packed, np.uint8, row_bytes, row_bytes * (link - 1))
                reference = self._references[link - 1]
                self._bits[link] = own ^ self._bits[reference] if reference else own
        return self._bits[number]
