"""Non-negative integers as byte planes, those planes apart that no compressor makes smaller."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Planes", "planes_at", "to_planes", "unzigzag", "zigzag"]

Unsigned = NDArray[np.uint64]

_ONE = np.uint64(1)
_WIDEST = 8
_FEWEST_TO_JUDGE = 64
# The chance that two bytes of a plane are equal, times 256: 1 for noise. Up to here compression gains nothing.
_NOISE_COLLISIONS = 1.12


@dataclass(frozen=True, slots=True)
class Planes:
    """Integers, taken apart.

    Args:
        width: Bytes per integer; as many planes, the lowest byte first.
        noise: Bit ``b`` is set when plane ``b`` lies in ``noise_bytes``.
        packed_bytes: The other planes, one after the other.
        noise_bytes: The planes that look like noise.
    """

    width: int
    noise: int
    packed_bytes: bytes
    noise_bytes: bytes


def zigzag(values: NDArray[np.int64]) -> Unsigned:
    """Small magnitudes of either sign as small unsigned integers: 0, -1, 1, -2 become 0, 1, 2, 3."""
    return ((values << 1) ^ (values >> 63)).view(np.uint64)


def unzigzag(values: Unsigned) -> NDArray[np.int64]:
    """What :func:`zigzag` was given."""
    return ((values >> _ONE) ^ (~(values & _ONE) + _ONE)).view(np.int64)


def to_planes(values: Unsigned) -> Planes:
    """Take integers apart."""
    width = (int(values.max()).bit_length() + 7) // 8 if len(values) else 0
    planes = np.ascontiguousarray(values.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :width].T)
    noise = sum(1 << index for index in range(width) if _is_noise(planes[index]))
    if not noise:
        return Planes(width, 0, planes.tobytes(), b"")
    packed = b"".join(planes[index].tobytes() for index in range(width) if not noise >> index & 1)
    return Planes(
        width, noise, packed, b"".join(planes[index].tobytes() for index in range(width) if noise >> index & 1)
    )


def planes_at(
    packed: bytes, at: int, noise_bytes: bytes, noise_at: int, count: int, width: int, noise: int
) -> tuple[Unsigned, int, int]:
    """``count`` integers, put together again, and how many bytes of either kind they took.

    Raises:
        ValueError: When the bytes do not suffice.
    """
    if width == 1 and not noise:
        return np.frombuffer(packed, np.uint8, count, at).astype(np.uint64), count, 0
    if width > _WIDEST:
        raise ValueError(width)
    values = np.zeros((count, _WIDEST), dtype=np.uint8)
    start, noise_start = at, noise_at
    for index in range(width):
        if noise >> index & 1:
            values[:, index] = np.frombuffer(noise_bytes, np.uint8, count, noise_at)
            noise_at += count
        else:
            values[:, index] = np.frombuffer(packed, np.uint8, count, at)
            at += count
    integers = values.reshape(-1).view("<u8").astype(np.uint64, copy=False)
    return integers, at - start, noise_at - noise_start


def _is_noise(plane: NDArray[np.uint8]) -> bool:
    total = len(plane)
    if total < _FEWEST_TO_JUDGE:
        return False
    counts = np.bincount(plane, minlength=256)
    pairs = int(counts @ counts) - total
    return pairs * 256 <= _NOISE_COLLISIONS * total * (total - 1)
