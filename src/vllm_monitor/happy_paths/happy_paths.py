"""``HappyPaths``: known-good executions, recorded from what is stored, and later ones measured by them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from vllm_monitor.errors import ConfigurationError
from vllm_monitor.happy_paths.comparison import Comparison, compare
from vllm_monitor.happy_paths.profile import ProfileBuilder
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.picture import StoredPages, TargetPicture
from vllm_monitor.records import HappyPath, LifecycleState, StateCheckpoint

__all__ = ["VOLATILE_ARGUMENTS", "HappyPathStore", "HappyPaths", "execution_of", "fingerprint_of", "has_failed"]

FOLLOWED_SCORE = 0.5
"""A run whose worst figure is at most half as bad again as it was went well."""
LEAST_PAGES = 30
VOLATILE_ARGUMENTS = frozenset({"port", "host", "log-file", "uvicorn-log-level"})
"""Arguments that may be otherwise without making another configuration of it."""


class HappyPathStore(Protocol):
    """What happy paths need of the store."""

    def save_happy_path(
        self,
        path_id: str,
        name: str,
        checkpoints: Iterable[StateCheckpoint],
        metrics_profile: Mapping[str, Any],
        guardrails: Iterable[str],
        *,
        metadata: Mapping[str, Any] | None = None,
        target: str = "",
    ) -> str:
        """Save one; durable on return."""
        ...

    def get_happy_paths(self) -> list[HappyPath]:
        """All of them."""
        ...

    def update_happy_path_stats(self, path_id: str, success: bool) -> None:
        """Count a later run."""
        ...


class HappyPaths:
    """Known-good executions. Thread-safe, as the store is.

    Args:
        store: Where they are.
    """

    def __init__(self, store: HappyPathStore) -> None:
        self._store = store

    def record(self, execution: HappyPath, name: str, path_id: str | None = None) -> HappyPath:
        """Keep an execution as a known-good one; the same id again, or the same name, replaces it and keeps its counts.

        Raises:
            ConfigurationError: When there is too little of it to measure others by.
        """
        pages = execution.metadata.get("pages", 0)
        if pages < LEAST_PAGES:
            raise ConfigurationError(
                f"there are {pages} pages of that time, and a happy path needs {LEAST_PAGES}",
                hint="take a longer stretch, or one in which the server was watched",
            )
        called = [one.path_id for one in self.all() if one.name == name] if path_id is None else [path_id]
        known = called[0] if len(called) == 1 else uuid.uuid4().hex
        self._store.save_happy_path(
            known,
            name,
            execution.checkpoints,
            execution.metrics_profile,
            execution.guardrails,
            metadata=execution.metadata,
            target=execution.target,
        )
        return self.get(known)

    def all(self) -> list[HappyPath]:
        """Every one, those first saved last in front."""
        return self._store.get_happy_paths()

    def get(self, path: str) -> HappyPath:
        """One by its id, the beginning of its id, or its name.

        Raises:
            ConfigurationError: When there is none, or several.
        """
        paths = self.all()
        found = [one for one in paths if one.path_id == path] or [one for one in paths if one.name == path]
        found = found or [one for one in paths if path and one.path_id.startswith(path)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigurationError(f"several happy paths are called {path!r}", hint="name it by its id")
        known = ", ".join(one.name for one in paths) or "none"
        raise ConfigurationError(f"there is no happy path {path!r}", hint=f"there are: {known}")

    def nearest(self, execution: HappyPath) -> tuple[HappyPath, Comparison] | None:
        """The happy path that an execution is nearest to: the same configuration first, then the smallest deviation.

        ``None`` when there is none with a load level in common.
        """
        measured = [(path, compare(path, execution)) for path in self.all() if path.path_id != execution.path_id]
        comparable = [(path, found) for path, found in measured if found.levels]
        return min(
            comparable,
            key=lambda one: (not one[1].same_configuration, one[0].target not in ("", execution.target), one[1].score),
            default=None,
        )

    def settle(self, execution: HappyPath, *, has_failed: bool) -> tuple[HappyPath, Comparison, bool] | None:
        """An execution is over: count it as a success or failure of the path that it is nearest to.

        Args:
            execution: The run.
            has_failed: Whether the server died.

        Returns:
            The path, how the run compares with it, and whether it went well; ``None`` when there is no path to
            measure it by.
        """
        found = self.nearest(execution)
        if found is None:
            return None
        path, comparison = found
        went_well = not has_failed and comparison.score <= FOLLOWED_SCORE
        self._store.update_happy_path_stats(path.path_id, went_well)
        return path, comparison, went_well


def execution_of(
    store: PersistenceManager, target: str, start: float, end: float, *, guardrails: Sequence[str] = ()
) -> HappyPath:
    """What is stored of a server between two times, in the form of a happy path (its id is empty).

    Args:
        store: The store.
        target: The server's URL.
        start: Unix seconds.
        end: Unix seconds.
        guardrails: Names of the guardrails that are active.
    """
    checkpoints = list(reversed(store.get_checkpoints(start_time=start, end_time=end, limit=None, target=target)))
    if not checkpoints or checkpoints[0].timestamp > start:  # the state in which the stretch began counts from there on
        earlier = store.get_checkpoints(end_time=start, limit=1, target=target)
        checkpoints = [*(replace(one, timestamp=start) for one in earlier), *checkpoints]
    picture, builder = TargetPicture(target), ProfileBuilder()
    for page in StoredPages(store, target).between(start, end):
        picture.observe(page)
        builder.add(picture.values(page.timestamp))
    metadata = {
        "start": start,
        "end": end,
        "pages": builder.pages,
        "fingerprint": fingerprint_of(checkpoints),
        "firing": sorted({name for one in checkpoints for name in one.guardrails_enforced}),
    }
    return HappyPath("", "", checkpoints, builder.profile(), list(guardrails), metadata=metadata, target=target)


def fingerprint_of(checkpoints: Sequence[StateCheckpoint]) -> dict[str, Any]:
    """Model, version, arguments and hardware of an execution, as far as its checkpoints know them."""
    known: dict[str, Any] = {}
    for one in checkpoints:
        server = one.metadata.get("server")
        if isinstance(server, dict):
            known.update({name: server[name] for name in ("version", "models") if server.get(name)})
        if one.arguments:
            known["arguments"] = {
                name: value for name, value in one.arguments.items() if name not in VOLATILE_ARGUMENTS
            }
        if one.hardware_state:
            known["hardware"] = dict(one.hardware_state)
    return known


def has_failed(checkpoints: Iterable[StateCheckpoint]) -> bool:
    """Whether the server died, or was in an error, in these."""
    bad = (LifecycleState.ERROR, LifecycleState.CRITICAL_ERROR, LifecycleState.UNRECOVERABLE)
    return any(one.state in bad for one in checkpoints)
