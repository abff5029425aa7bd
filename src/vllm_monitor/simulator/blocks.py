"""The KV cache: blocks handed to sequences, and prompt beginnings that are still in it."""

from __future__ import annotations

from vllm_monitor.simulator.request import Request
from vllm_monitor.simulator.settings import EngineSettings

__all__ = ["BlockPool"]


class BlockPool:
    """Counts blocks; which block is which does not matter here.

    A shared prompt beginning saves computation but not blocks: every sequence is charged in full, which is on
    the safe side. Remembered beginnings live in free blocks and are forgotten, oldest first, when those go.

    Args:
        settings: Number and size of the blocks.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._block_size = settings.block_size
        self._total = settings.num_blocks
        self._least = settings.blocks_for(settings.max_model_len)
        self._withheld = 0
        self._held = 0
        self._prefixes: dict[int, int] = {}
        self._prefix_blocks = 0

    @property
    def free(self) -> int:
        """Blocks that can be handed out; never negative."""
        return max(0, self._total - self._withheld - self._held)

    @property
    def usage_ratio(self) -> float:
        """Share of the cache in use, 0 to 1."""
        return min(1.0, (self._withheld + self._held) / self._total)

    def withhold(self, ratio: float) -> None:
        """Take this share of the cache away, but leave room for one sequence of full length."""
        self._withheld = min(round(self._total * ratio), self._total - self._least)

    def missing(self, request: Request, tokens: int) -> int:
        """Blocks that ``request`` lacks to compute ``tokens`` more tokens."""
        return max(0, -(-(request.computed + tokens) // self._block_size) - request.blocks)

    def take(self, request: Request, blocks: int) -> bool:
        """Give ``blocks`` to ``request``, or nothing when there are not enough."""
        if blocks > self.free:
            return False
        request.blocks += blocks
        self._held += blocks
        while self._prefix_blocks > self.free:
            self._forget_oldest()
        return True

    def release(self, request: Request) -> None:
        """Take back all blocks of ``request``."""
        self._held -= request.blocks
        request.blocks = 0

    def cached_tokens(self, request: Request) -> int:
        """Tokens at the beginning of the prompt that need no computation; at least one always does."""
        resident = self._prefixes.get(request.prefix_group, 0) * self._block_size
        usable = min(resident, request.prefix_tokens, request.prompt_tokens - 1)
        return usable - usable % self._block_size

    def remember_prefix(self, request: Request) -> None:
        """The beginning of this prompt is in the cache from now on."""
        blocks = min(request.prefix_tokens, request.prompt_tokens) // self._block_size
        if request.prefix_group < 0 or blocks == 0:
            return
        before = self._prefixes.pop(request.prefix_group, 0)
        self._prefixes[request.prefix_group] = max(before, blocks)
        self._prefix_blocks += max(0, blocks - before)
        while self._prefix_blocks > self.free:
            self._forget_oldest()

    def forget_prefixes(self) -> None:
        """Clear the prefix cache."""
        self._prefixes.clear()
        self._prefix_blocks = 0

    def _forget_oldest(self) -> None:
        oldest = next(iter(self._prefixes))
        self._prefix_blocks -= self._prefixes.pop(oldest)
