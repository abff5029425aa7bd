"""What a monitor does with what it keeps: guardrails, plugins, happy paths, history, copies."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

from vllm_monitor.clock import Clock
from vllm_monitor.core.config import TargetSettings
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.guardrails import Guardrails
from vllm_monitor.happy_paths import HappyPaths, execution_of
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.persistence.archive.archive_reports import ExportReport, ImportReport
from vllm_monitor.plugin_system import PluginManager
from vllm_monitor.records import (
    Event,
    GuardrailPolicy,
    HappyPath,
    LifecycleState,
    MetricType,
    PluginKind,
    PluginStatus,
    StateCheckpoint,
)

__all__ = ["MonitorVerbs"]

_log = logging.getLogger(__name__)

RUN_SECONDS = 3600.0
ENDED = (LifecycleState.TERMINATED, LifecycleState.CRITICAL_ERROR, LifecycleState.UNRECOVERABLE)


class MonitorVerbs:
    """Part of ``VLLMMonitor``, which sets these attributes. Every method may be called from any thread."""

    persistence_manager: PersistenceManager | None
    guardrails: Guardrails
    plugin_manager: PluginManager
    _clock: Clock
    _targets: dict[str, TargetSettings]

    def register_guardrail(
        self,
        name: str,
        description: str,
        condition: str,
        intervention: Any = None,
        severity: str = "warning",
    ) -> GuardrailPolicy:
        """Add a guardrail, or replace the one of its name; stored, and evaluated from the next tick on.

        Args:
            name: Short, in snake_case.
            description: One sentence that an alert says.
            condition: An expression (CEL) over the names of docs/guardrails.md, which may end with ``for 30s``.
            intervention: What to do: the name of a strategy, or a mapping with its name and parameters.
            severity: ``info``, ``warning`` or ``critical``.

        Raises:
            InvalidConditionError: When the condition cannot be understood; a function is none.
            ConfigurationError: When the name is empty, or there is no such severity.
        """
        return self.guardrails.register(GuardrailPolicy(name, description, condition, intervention, severity)).policy

    def persist_guardrails(self) -> int:
        """Store every guardrail of the operator's own, and which of the package's are disabled; how many."""
        return self.guardrails.save()

    def register_plugin(
        self, name: str, plugin_type: str | PluginKind, execute_code: str, description: str = "", **metadata: Any
    ) -> PluginStatus:
        """Add a plugin from its source, or replace the one of its name; stored, trusted, and run while we watch.

        Args:
            name: Letters, digits, ``_``, ``-`` and ``.``.
            plugin_type: ``collector``, ``detector``, ``strategy``, ``guardrail``, ``exporter`` or ``panel``.
            execute_code: The text of a module with the function that its kind needs, see docs/plugins.md. It runs in
                a process of its own.
            description: For a person.
            metadata: ``version``, ``config``, ``dependencies``, ``target`` and the other arguments of
                :meth:`PluginManager.register`; anything else is kept with it.

        Raises:
            PluginError: When it cannot be loaded; nothing was changed then.
            ConfigurationError: When the name or the kind is none.
            StorageError: When it cannot be stored, or the trust in it cannot.
        """
        return self.plugin_manager.register(name, plugin_type, execute_code, description, **metadata)

    def list_plugins(self, plugin_type: str | PluginKind | None = None) -> list[PluginStatus]:
        """Every plugin, or those of a kind, and how they are doing.

        Raises:
            ConfigurationError: When there is no such kind.
        """
        return self.plugin_manager.all(plugin_type)

    def persist_plugins(self) -> int:
        """Store every plugin again as it is known; how many. Registering one has stored it already."""
        return self.plugin_manager.save()

    def save_happy_path(
        self, path_id: str, name: str, *, target: str | None = None, last_seconds: float = 3600.0
    ) -> HappyPath:
        """Keep how a server was of late as a known-good execution; the same id again replaces it.

        Args:
            path_id: Unique across stores.
            name: For a person.
            target: Which server; ``None`` when only one is watched.
            last_seconds: How far back.

        Raises:
            ConfigurationError: When this monitor keeps no store, the server is not clear, or there is too little of it.
        """
        store, now = self._store(), self._clock.now()
        known = list(self._targets)
        if target is None and len(known) != 1:
            raise ConfigurationError("which server?", hint=f"give target; watched are: {', '.join(known) or 'none'}")
        url = known[0] if target is None else TargetSettings(url=target).url
        active = [one.policy.name for one in self.guardrails.all() if one.policy.enabled]
        store.flush_all()
        execution = execution_of(store, url, now - last_seconds, now, guardrails=active)
        return HappyPaths(store).record(execution, name, path_id)

    def get_historical_metrics(
        self, metric_type: str | MetricType | None = None, hours_back: float = 24.0, *, limit: int | None = 1000
    ) -> list[dict[str, Any]]:
        """Stored samples of the last hours, newest first.

        Args:
            metric_type: Only samples of this type.
            hours_back: How far back.
            limit: Most samples; ``None`` for all, which may be millions.
        """
        if self.persistence_manager is None:
            return []
        return self.persistence_manager.get_metrics(
            metric_type=metric_type, start_time=self._clock.now() - hours_back * 3600.0, limit=limit
        )

    def get_persistence_stats(self) -> dict[str, Any]:
        """Counts, bytes and health of the store; empty without one."""
        return self.persistence_manager.get_statistics() if self.persistence_manager is not None else {}

    def export_monitoring_data(self, output_dir: str | Path) -> ExportReport:
        """Write a consistent copy of the store into a folder, see ``PersistenceManager.export_data``.

        Raises:
            ConfigurationError: When this monitor keeps no store.
            ArchiveError: When the folder holds something else, or cannot be written.
            StoreUnavailableError: When the store cannot be read or written now.
        """
        return self._store().export_data(output_dir)

    def import_monitoring_data(self, input_dir: str | Path, merge: bool = True) -> ImportReport:
        """Merge such a copy into the store, see ``PersistenceManager.import_data``; twice is once.

        Args:
            input_dir: The folder.
            merge: ``False``: only into a store that is empty.

        Raises:
            ConfigurationError: When this monitor keeps no store.
            ArchiveError: When the copy is damaged, hostile, or none; nothing of it was imported.
            StoreTooNewError: When a newer version wrote it.
            StoreUnavailableError: When the store cannot be written now.
        """
        return self._store().import_data(input_dir, merge)

    def _store(self) -> PersistenceManager:
        if self.persistence_manager is None:
            raise ConfigurationError(
                "this monitor keeps no store", hint="construct it with enable_persistence=True and a persistence_config"
            )
        return self.persistence_manager

    def _settle_run(self, last: StateCheckpoint) -> None:
        """A server has ended or died: count its last hour for or against the happy path that it is nearest to."""
        store = self.persistence_manager
        try:
            if store is None or not store.get_happy_paths(limit=1):
                return
            began = last.timestamp - RUN_SECONDS
            story = store.get_checkpoints(
                start_time=began, end_time=last.timestamp - 0.001, limit=None, target=last.target
            )
            for after, one in pairwise([last, *story]):  # newest first
                if one.state in ENDED:  # what was before is another run
                    began = after.timestamp
                    break
            execution = execution_of(store, last.target, began, last.timestamp + 1.0)
            settled = HappyPaths(store).settle(execution, has_failed=last.state is not LifecycleState.TERMINATED)
        except Exception:  # the watch goes on; the run is not counted
            _log.exception("a run of %s could not be compared with the happy paths", last.target)
            return
        if settled is not None:
            path, comparison, went_well = settled
            words = (
                f"this run of {last.target} {'went as well as' if went_well else 'did not go as well as'} {path.name}"
            )
            store.enqueue_event(
                Event(
                    timestamp=self._clock.now(),
                    event_type="run_settled",
                    message=words,
                    target=last.target,
                    data={
                        "path_id": path.path_id,
                        "went_well": went_well,
                        "score": comparison.score,
                        "ended_as": last.state.value,
                        "worse": [str(one) for one in comparison.deviations if one.is_worse][:10],
                    },
                )
            )
