from __future__ import annotations

import contextlib
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_monitor.errors import StoreDamagedError, ValueNotStorableError
from vllm_monitor.persistence.samples.blocks.codec import BlockMethod
from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock, decode_loose_block, encode_loose_block

samples = st.tuples(
    st.integers(0, 3),  # rows after the row before
    st.integers(-(2**40), 2**51),
    st.sampled_from([0, 1, 2, 7, 2**32 - 1]),
    st.one_of(st.floats(), st.integers(-5, 5).map(float), st.sampled_from([2.0**61, 2.0**63, -0.0, float("nan")])),
    st.integers(0, 4),
    st.one_of(st.none(), st.text(max_size=5)),
)


def block_of(drawn: list[tuple[int, int, int, float, int, str | None]]) -> LooseBlock:
    sequences = np.cumsum(np.array([one[0] for one in drawn], dtype=np.int64))
    return LooseBlock(
        sequences,
        np.array([place - int(np.searchsorted(sequences, row)) for place, row in enumerate(sequences)], dtype=np.int64),
        np.array([one[1] for one in drawn], dtype=np.int64),
        np.array([one[2] for one in drawn], dtype=np.int64),
        np.array([one[3] for one in drawn], dtype=np.float64),
        np.array([one[4] for one in drawn], dtype=np.uint8),
        {place: one[5] for place, one in enumerate(drawn) if one[5] is not None},
    )


def encoded(block: LooseBlock, method: BlockMethod = BlockMethod.ZLIB) -> bytes:
    return encode_loose_block(
        block.sequences,
        block.positions,
        block.times_ms,
        block.series_ids,
        block.values,
        block.codes,
        block.metadata,
        method=method,
    )


def contents(block: LooseBlock) -> tuple[object, ...]:
    arrays = (block.sequences, block.positions, block.times_ms, block.series_ids, block.values, block.codes)
    return (*((array.dtype, array.tobytes()) for array in arrays), block.metadata)


@given(st.lists(samples, max_size=40), st.sampled_from(BlockMethod))
@settings(max_examples=150, deadline=None)
def test_samples_come_back_bit_for_bit_in_order_of_arrival(
    drawn: list[tuple[int, int, int, float, int, str | None]], method: BlockMethod
) -> None:
    block = block_of(drawn)
    assert contents(decode_loose_block(encoded(block, method))) == contents(block)


def regular_block(count: int) -> LooseBlock:
    places = np.arange(count, dtype=np.int64)
    return LooseBlock(
        100 + places // 50,
        places % 50,
        1_795_382_013_905 + places * 10,
        5 + places % 7,
        np.where(places % 7 == 3, np.sin(places), np.cumsum(places % 3)).astype(np.float64),
        (places % 7 == 2).astype(np.uint8),
        {3: '{"a":1}'},
    )


def test_regular_samples_get_small() -> None:
    assert len(encoded(regular_block(7000))) < 2.5 * 7000


def test_every_changed_byte_and_every_truncation_is_noticed() -> None:
    payload = encoded(regular_block(60))
    decode_loose_block(payload)
    for position in range(len(payload)):
        changed = bytearray(payload)
        changed[position] ^= 1 << position % 8
        with pytest.raises(StoreDamagedError):
            decode_loose_block(bytes(changed))
        with pytest.raises(StoreDamagedError):
            decode_loose_block(payload[:position])
    with pytest.raises(StoreDamagedError):
        decode_loose_block(payload + b"\0")


def forged(count: int, raw: bytes, raw_bytes: int | None = None) -> bytes:
    """A block with checksums that hold, whatever it says."""
    head = struct.pack("<3sBBII", b"VML", 1, BlockMethod.ZLIB, count, len(raw) if raw_bytes is None else raw_bytes)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    stored = deflater.compress(raw) + deflater.flush()
    return head + struct.pack("<I", zlib.crc32(stored, zlib.crc32(head))) + stored


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_forged_blocks_are_damaged_or_read_but_nothing_else(data: st.DataObject) -> None:
    block = regular_block(20)
    raw = bytearray(encoded(block, BlockMethod.STORED)[17:])
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    count = data.draw(st.sampled_from([20, 20, 20, 0, 1, 21, 2**22, 2**32 - 1]))
    with contextlib.suppress(StoreDamagedError):
        decode_loose_block(forged(count, bytes(raw)))


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    bomb = b"\0" * (1 << 22)
    for claimed in (1000, (1 << 32) - 1):
        with pytest.raises(StoreDamagedError):
            decode_loose_block(forged(10, bomb, claimed))


def test_metadata_of_no_sample_is_damage() -> None:
    empty = b"\0\0\0" + struct.pack("<I", 0) + b"\0" * 7
    assert len(decode_loose_block(forged(0, empty)).values) == 0
    with pytest.raises(StoreDamagedError):
        decode_loose_block(forged(0, empty + json.dumps({"0": "x"}).encode()))


def test_columns_of_different_length_are_refused() -> None:
    block = regular_block(3)
    with pytest.raises(ValueNotStorableError):
        encode_loose_block(
            block.sequences[:2], block.positions, block.times_ms, block.series_ids, block.values, block.codes, {}
        )
