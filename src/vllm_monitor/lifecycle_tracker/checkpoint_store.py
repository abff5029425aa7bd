"""What the tracker needs of the store."""

from __future__ import annotations

from typing import Any, Protocol

from vllm_monitor.records import StateCheckpoint

__all__ = ["CheckpointStore"]


class CheckpointStore(Protocol):
    """What the tracker needs of the store."""

    def save_checkpoint(self, checkpoint: StateCheckpoint) -> str:
        """Store a checkpoint; durable on return."""
        ...

    def enqueue_checkpoint(self, checkpoint: StateCheckpoint) -> str:
        """Hand a checkpoint to the writer without waiting; returns its id."""
        ...

    def get_checkpoints(self, *, limit: int = 100, target: str | None = None) -> list[StateCheckpoint]:
        """Checkpoints, newest first."""
        ...

    def latest(self, *, target: str | None = None, metric_name: str | None = None) -> list[dict[str, Any]]:
        """The newest sample of every series."""
        ...
