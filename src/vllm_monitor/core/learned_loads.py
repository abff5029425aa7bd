"""What is usual at each load of a server, kept in the store between two watches."""

from __future__ import annotations

import asyncio
import logging

from vllm_monitor.core.pipeline import TargetPipeline
from vllm_monitor.errors import RecordNotFoundError
from vllm_monitor.persistence import PersistenceManager

__all__ = ["SAVE_SECONDS", "LearnedLoads"]

_log = logging.getLogger(__name__)

SAVE_SECONDS = 300.0
"""Each save is a new version of a model; five minutes of looks can be learned again."""


class LearnedLoads:
    """Saves and restores what pipelines have learned. One owner, an event loop.

    Args:
        store: Where it is kept; ``None`` keeps nothing.
    """

    def __init__(self, store: PersistenceManager | None) -> None:
        self._store = store
        self._pipelines: dict[str, TargetPipeline] = {}

    async def take_up(self, pipeline: TargetPipeline) -> None:
        """Restore what was learned before, and save from now on what is."""
        if self._store is not None:
            try:
                state, _ = await self._store.load_model_async(_name_of(pipeline))
            except RecordNotFoundError:
                state = None
            except Exception:  # whatever is wrong with it, it can be learned again
                _log.exception("what is usual at the loads of %s cannot be read; it is learned anew", pipeline.target)
                state = None
            if isinstance(state, dict):
                pipeline.restore(state)
        self._pipelines[pipeline.target] = pipeline

    async def let_go(self, pipeline: TargetPipeline) -> None:
        """Save it for the last time."""
        self._pipelines.pop(pipeline.target, None)
        await self._save(pipeline)

    async def save(self) -> None:
        """Save what was learned since the last time."""
        await asyncio.gather(*(self._save(pipeline) for pipeline in list(self._pipelines.values())))

    async def _save(self, pipeline: TargetPipeline) -> None:
        learned = pipeline.take_learned()
        if learned is None or self._store is None:
            return
        try:
            await self._store.save_model_async(_name_of(pipeline), learned)
        except Exception:  # the watch goes on; it is saved with what is learned next
            _log.exception("what is usual at the loads of %s cannot be saved", pipeline.target)


def _name_of(pipeline: TargetPipeline) -> str:
    return f"load_baseline/{pipeline.target}"
