"""Sealed blocks: the scrapes of one stream, in few bytes, each series of which can be read alone.

A block is a directory and streams (``directory``). The coding of each column is chosen when the block is made and
written down in the directory, so it can be chosen better some day without breaking older blocks.
"""

from __future__ import annotations

from vllm_monitor.persistence.samples.blocks.encoder import encode_block
from vllm_monitor.persistence.samples.blocks.method import BlockMethod
from vllm_monitor.persistence.samples.blocks.reader import BlockReader

__all__ = ["BlockMethod", "BlockReader", "block_reader", "encode_block"]


def block_reader(payload: bytes) -> BlockReader:
    """A reader of a block that is in memory.

    Raises:
        StoreDamagedError: When the directory is damaged.
    """
    return BlockReader(lambda offset, length: payload[offset : offset + length], len(payload))
