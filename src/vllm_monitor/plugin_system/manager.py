"""``PluginManager``: which plugins there are, and their turns while a watch runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_monitor.clock import Clock, SystemClock
from vllm_monitor.errors import (
    ConfigurationError,
    PluginError,
    PluginNotTrustedError,
    StaleRevisionError,
    StorageError,
    VLLMMonitorError,
)
from vllm_monitor.guardrails import Guardrails
from vllm_monitor.plugin_system.answers import BadAnswerError, Panel
from vllm_monitor.plugin_system.catalogue import SETTABLE, Entry, declared_record, judge
from vllm_monitor.plugin_system.configuration import plain_config
from vllm_monitor.plugin_system.declaration import checked_kind, declaration_of
from vllm_monitor.plugin_system.delivery import Delivery, PluginStore
from vllm_monitor.plugin_system.followed_files import FollowedFiles, read_source
from vllm_monitor.plugin_system.installed import InstalledPlugin, installed_plugins
from vllm_monitor.plugin_system.process import PluginFailedError
from vllm_monitor.plugin_system.registration import record_of_source
from vllm_monitor.plugin_system.runner import PluginRunner, Views
from vllm_monitor.plugin_system.running import RunningPlugin
from vllm_monitor.plugin_system.trust import TrustList, sha256_of
from vllm_monitor.records import (
    PLUGIN_VERBS,
    Event,
    FailurePrediction,
    PluginKind,
    PluginRecord,
    PluginState,
    PluginStatus,
    Severity,
    TargetView,
)

__all__ = ["PluginManager"]

_log = logging.getLogger(__name__)
INSTALLED_SECONDS = 10.0


class PluginManager:
    """The plugins of a monitor. Thread-safe.

    Each runs in a process of its own, so that nothing it does (an endless loop, a crash, all the memory it can get)
    reaches the monitor. Constructing runs none of them; :meth:`start` does.

    Args:
        store: Where plugins are kept and where what they answer goes; ``None`` keeps nothing.
        trust: Which sources may run; by default a list in memory.
        guardrails: Where the policies of guardrail plugins go.
        interval_seconds: Time between two turns of a plugin that does not say.
        clock: Where time comes from.
        concurrent: ``False`` has every turn within :meth:`step`, for tests.
    """

    def __init__(
        self,
        store: PluginStore | None = None,
        *,
        trust: TrustList | None = None,
        guardrails: Guardrails | None = None,
        interval_seconds: float = 1.0,
        clock: Clock | None = None,
        concurrent: bool = True,
    ) -> None:
        self._clock = clock if clock is not None else SystemClock()
        self.trust_list = trust if trust is not None else TrustList(None, clock=self._clock)
        self._store = store
        self._delivery = Delivery(store, guardrails, clock=self._clock)
        self._runner = PluginRunner(
            self._delivery,
            interval_seconds=interval_seconds,
            clock=self._clock,
            concurrent=concurrent,
            on_disabled=self._disable,
        )
        self._lock = threading.RLock()
        self._changing = threading.RLock()  # one change of what runs at a time; processes start within it
        self._in_memory: dict[str, PluginRecord] = {}
        self._installed: dict[str, InstalledPlugin] | None = None
        self._installed_until = 0.0
        self._entries: dict[str, Entry] = {}
        self._files = FollowedFiles()
        self.refresh()

    # -- which there are ----------------------------------------------------------------------------------------

    def all(self, kind: PluginKind | str | None = None) -> list[PluginStatus]:
        """Every plugin and how it is doing, in the order in which they are loaded.

        Args:
            kind: Only those of this kind.

        Raises:
            ConfigurationError: When there is no such kind.
        """
        wanted = None if kind is None else checked_kind(kind)
        with self._lock:
            found = [self._runner.status(entry) for entry in self._entries.values()]
        return [one for one in found if wanted is None or one.record.plugin_type == wanted]

    def get(self, name: str) -> PluginStatus:
        """One plugin.

        Raises:
            ConfigurationError: When there is none of that name.
        """
        with self._lock:
            return self._runner.status(self._entry(name))

    def source_of(self, name: str) -> str:
        """The source of a plugin; of an installed one that of the module in which it declares itself.

        Raises:
            ConfigurationError: When there is none of that name.
        """
        record = self._entry(name).record
        plugin = self._found_installed().get(name)
        return record.source or (plugin.source if plugin is not None else "")

    def register(
        self,
        name: str,
        plugin_type: PluginKind | str | None,
        source: str,
        description: str = "",
        *,
        version: str | None = None,
        config: Mapping[str, Any] | None = None,
        dependencies: list[str] | tuple[str, ...] | None = None,
        target: str = "",
        file: Path | None = None,
        follow: bool = False,
        **metadata: Any,
    ) -> PluginStatus:
        """Add a plugin, or replace the one of its name; its source is trusted from now on.

        It is loaded once before anything is stored: one that cannot be loaded changes nothing, and the one before
        runs on.

        Args:
            name: Letters, digits, ``_``, ``-`` and ``.``.
            plugin_type: What it is for; ``None`` when its source says it.
            source: The text of a Python module, see docs/plugins.md.
            description: For a person; by default what its source says, as with the next three.
            version: Its version.
            config: Its settings.
            dependencies: Plugins that must run before it: ``name`` or ``name>=1.2``.
            target: The only server it is for.
            file: Where the source was read from.
            follow: Take up and trust whatever stands in ``file`` from now on.
            metadata: ``interval_seconds``, ``timeout_seconds``, ``memory_bytes``, ``config_schema``, or anything that
                is to be kept with it.

        Raises:
            PluginError: When it cannot be loaded, or what it needs is not there.
            ConfigurationError: When the name or the kind is none.
            StorageError: When it cannot be stored, or the trust in it cannot.
        """
        record = record_of_source(
            name, plugin_type, source, description, version, config, dependencies, target, file, metadata
        )
        sha256 = sha256_of(source)
        with self._changing:
            trial = self._tried(record)
            before = self._records().get(name)
            try:
                self.trust_list.trust(sha256, name, follow=file if follow else None, unfollow=True)
                self._save(record)
            except BaseException:
                trial.retire()
                if before is None or before.source != source:
                    self.trust_list.distrust(sha256, name)
                raise
            if before is not None and before.source != source:
                self.trust_list.distrust(sha256_of(before.source), name, unfollow=False)
            self._runner.take_over(trial)
            self._delivery.tell(
                "plugin_registered", f"plugin {name} {record.version}".rstrip() + " was registered", sha256=sha256
            )
            self.refresh()
        return self.get(name)

    def add_file(
        self,
        path: Path,
        *,
        name: str | None = None,
        plugin_type: PluginKind | str | None = None,
        config: Mapping[str, Any] | None = None,
        target: str | None = None,
        follow: bool = False,
    ) -> PluginStatus:
        """Add the plugin in a file, see :meth:`register`.

        What a plugin of that name has been given before, and is not given now, stays.

        Args:
            path: A Python file.
            name: Its name; by default what it declares, or that of the file.
            plugin_type: What it is for; by default what it declares.
            config: Its settings.
            target: The only server it is for.
            follow: Take up and trust whatever stands in the file from now on.

        Raises:
            ConfigurationError: When the file cannot be read.
            PluginError: As :meth:`register`.
            StorageError: As :meth:`register`.
        """
        path = path.expanduser().resolve()
        source = read_source(path, follow=follow)
        declared = declaration_of(source, path.name)
        called = name or declared.name or path.stem
        known = self._records().get(called) or PluginRecord(called, "")
        if declared.kind is None and plugin_type is None:
            plugin_type = known.plugin_type or None
        return self.register(
            called,
            plugin_type,
            source,
            config=known.config if config is None else config,
            target=known.target if target is None else target,
            file=path,
            follow=follow,
            **{key: known.metadata[key] for key in SETTABLE if key in known.metadata},
        )

    def trust(self, name: str, *, config: Mapping[str, Any] | None = None) -> PluginStatus:
        """Trust the source of a plugin as it is now; it runs from the next :meth:`refresh` on.

        Args:
            name: The plugin.
            config: Its settings from now on; ``None`` leaves them.

        Raises:
            ConfigurationError: When there is none of that name.
            PluginError: When it does not load with these settings; nothing was changed then.
            StorageError: When it cannot be written down.
        """
        with self._changing:
            self.refresh()
            entry = self._entry(name)
            record = entry.record
            if not entry.sha256:
                raise PluginError(f"plugin {name} cannot be trusted: {entry.reason}", hint="install or add it first")
            changes: dict[str, Any] = {"registered_sha256": entry.sha256}
            record = replace(record, metadata={**record.metadata, **changes})
            if not record.source and (plugin := self._found_installed().get(name)) is not None:
                record = declared_record(record, plugin)
            if config is not None:
                record = replace(record, config=plain_config(name, config))
                self._tried(record).retire()
            self.trust_list.trust(entry.sha256, name)
            self._save(record)
            self._delivery.tell("plugin_trusted", f"plugin {name} is trusted now", sha256=entry.sha256)
            self.refresh()
        return self.get(name)

    def enable(self, name: str, *, enabled: bool = True) -> PluginStatus:
        """Switch a plugin on or off; durable on return.

        Raises:
            ConfigurationError: When there is none of that name.
        """
        with self._changing:
            self.refresh()
            record = self._entry(name).record
            metadata = {key: value for key, value in record.metadata.items() if key != "disabled_because"}
            self._save(replace(record, enabled=enabled, metadata=metadata))
            self._delivery.tell(
                "plugin_enabled" if enabled else "plugin_disabled",
                f"plugin {name} was switched " + ("on" if enabled else "off"),
            )
            if not enabled:
                self._delivery.silence(name)
            self.refresh()
        return self.get(name)

    def remove(self, name: str) -> None:
        """Forget a plugin and the trust in it; what it stored stays.

        Raises:
            ConfigurationError: When there is none of that name.
        """
        with self._changing:
            self.refresh()
            entry = self._entry(name)
            self.trust_list.distrust(entry.sha256, name)
            self._delivery.withdraw(name)
            if self._store is None:
                self._in_memory.pop(name, None)
            elif name in self._store.load_plugins():
                self._store.delete_plugin(name)
            self._delivery.tell("plugin_removed", f"plugin {name} was removed")
            self.refresh()

    def save(self) -> int:
        """Store every plugin again as it is known; how many."""
        with self._lock:
            records = [entry.record for entry in self._entries.values() if entry.record.source]
        if self._store is not None and records:
            self._store.save_plugins(records)
        return len(records)

    # -- running ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run those that may run, from the next :meth:`step` on."""
        with self._changing:
            self._runner.start()
            self.refresh()

    def stop(self) -> None:
        """End all of their processes. :meth:`start` begins anew."""
        self._runner.stop()  # first of all: a change that is under way may wait for a plugin that hangs
        with self._changing:
            self._runner.stop()

    def refresh(self) -> None:
        """Take in what is stored, trusted and written in followed files now; start, replace and end what that asks for.

        Reads the store, and waits up to ten seconds for each plugin that is new: not for an event loop.
        """
        with self._changing:
            if self._runner.is_started:
                self._follow_files()
            try:
                records = self._records()
            except StorageError as error:
                _log.error("the stored plugins cannot be read: %s", error)
                return
            trusted = self.trust_list.trusted()
            entries = judge(records.values(), self._found_installed(), trusted, self.trust_list.problem())
            with self._lock:
                self._entries = entries
            if not self._runner.is_started:
                return
            self._runner.bring_about(entries, trusted.__contains__)
            for name, entry in entries.items():
                if entry.is_switched_off:
                    self._delivery.silence(name)

    def step(self, views: Views) -> None:
        """Give every plugin its turn whose time has come. Waits for none of them, unless ``concurrent`` is ``False``.

        Args:
            views: Gives the servers by URL; asked only when there is a turn.
        """
        self._runner.step(views)

    def call(self, name: str, verb: str, argument: Any = None, targets: Mapping[str, TargetView] | None = None) -> Any:
        """Call one function of a plugin that runs, now. Waits for its answer.

        Args:
            name: The plugin.
            verb: A function of its kind.
            argument: What it is given as ``argument``; JSON values.
            targets: The servers that it sees.

        Raises:
            ConfigurationError: When there is no such plugin, or its kind has no such function.
            PluginNotTrustedError: When its source is not trusted.
            PluginError: When it does not run, or fails.
        """
        entry, running = self._entry(name), self._runner.get(name)
        if running is None:
            kind = PluginNotTrustedError if entry.state is PluginState.UNTRUSTED else PluginError
            raise kind(f"plugin {name} does not run: {entry.state}", hint=entry.reason or "start the monitor first")
        if verb not in PLUGIN_VERBS[running.candidate.kind]:
            raise ConfigurationError(
                f"a {running.candidate.kind} has no function {verb}",
                hint=f"it has {', '.join(PLUGIN_VERBS[running.candidate.kind])}",
            )
        return self._runner.call(running, verb, argument, targets or {})

    def panels(self) -> list[Panel]:
        """What the panels show now."""
        return self._delivery.panels()

    def open_predictions(self, target: str, now: float) -> Mapping[str, float]:
        """Failure type to the probability of what detectors predict of a server now."""
        return self._delivery.open_predictions(target, now)

    def take_predictions(self, target: str) -> list[FailurePrediction]:
        """What detectors have predicted of a server since this was last asked, oldest first; it is stored already."""
        return self._delivery.take_predictions(target)

    def note_resolved(self, prediction: FailurePrediction) -> None:
        """It is known what became of a prediction: it is not open any more."""
        self._delivery.note_resolved(prediction)

    def take_events(self) -> list[Event]:
        """What happened to plugins since this was last asked; it is stored as well."""
        return self._delivery.take_events()

    def close(self) -> None:
        """End everything. Calling it again does nothing."""
        self.stop()

    # -- inside -------------------------------------------------------------------------------------------------

    def _tried(self, record: PluginRecord) -> RunningPlugin:
        """The plugin, loaded; nothing of what there was is touched yet.

        Raises:
            PluginError: When it cannot be loaded, or what it needs is not there.
        """
        records = {**self._records(), record.name: record}
        plugin = self._found_installed().get(record.name) if not record.source else None
        trusted = {*self.trust_list.trusted(), plugin.sha256 if plugin else sha256_of(record.source)}
        entry = judge(records.values(), self._found_installed(), trusted)[record.name]
        if entry.candidate is None:
            raise PluginError(f"plugin {record.name} cannot be loaded: {entry.reason}", hint="mend that first")
        try:
            return self._runner.try_out(entry.candidate)
        except (PluginFailedError, BadAnswerError) as error:
            words = error.message if isinstance(error, PluginFailedError) else str(error)
            raise PluginError(
                f"plugin {record.name} cannot be loaded: {words}", hint="mend it; nothing was changed"
            ) from None

    def _disable(self, running: RunningPlugin, because: str) -> None:
        """It failed too often: it stays off, also after a restart, until somebody enables it."""
        name = running.candidate.name
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                return
            metadata = {**entry.record.metadata, "disabled_because": because}
            disabled = replace(entry.record, enabled=False, metadata=metadata)
            why = f"{because} (vllm-monitor plugins enable {name})"
            self._entries[name] = Entry(disabled, PluginState.DISABLED, why, running.candidate.sha256)
        try:
            revision = 0 if self._store is None else self._store.document_revisions("plugins").get(name, 0)
            known = self._records().get(name)
            if known is None or known.source != disabled.source:
                return  # it was removed or replaced meanwhile
            metadata = {**known.metadata, "disabled_because": because}
            self._save(replace(known, enabled=False, metadata=metadata), {name: revision})
        except StaleRevisionError:
            return  # likewise
        except VLLMMonitorError as error:
            _log.error("that plugin %s is disabled could not be stored: %s", name, error)

    def _follow_files(self) -> None:
        """Register what the files now hold that their operator said are to be followed."""
        for path, name in list(self._files.changed(self.trust_list.followed())):
            known = self._records().get(name)
            try:
                if known is None or not known.enabled:
                    continue
                source = read_source(path, follow=True)
                if sha256_of(source) != sha256_of(known.source):
                    self.add_file(path, name=name, follow=True)
                    self._delivery.tell("plugin_reloaded", f"plugin {name} was loaded anew: {path} has changed")
            except VLLMMonitorError as error:
                _log.warning("%s has changed, the plugin before runs on: %s", path, error)
                self._delivery.tell(
                    "plugin_reload_failed",
                    f"{path} has changed, and plugin {name} could not be loaded anew; the one before runs on: {error}",
                    Severity.WARNING,
                    plugin=name,
                )

    def _records(self) -> dict[str, PluginRecord]:
        return dict(self._in_memory) if self._store is None else self._store.load_plugins()

    def _save(self, record: PluginRecord, expected_revisions: Mapping[str, int] | None = None) -> None:
        if self._store is None:
            self._in_memory[record.name] = record
        else:
            self._store.save_plugins([record], expected_revisions=expected_revisions)

    def _found_installed(self) -> dict[str, InstalledPlugin]:
        """What packages bring, looked for again now and then: they may be upgraded beside us."""
        now = self._clock.monotonic()
        if self._installed is None or now >= self._installed_until:
            self._installed = installed_plugins()
            self._installed_until = now + INSTALLED_SECONDS
        return self._installed

    def _entry(self, name: str) -> Entry:
        with self._lock:
            found = self._entries.get(name)
        if found is None:
            known = ", ".join(self._entries) or "none"
            raise ConfigurationError(f"there is no plugin {name!r}", hint=f"there are: {known}")
        return found
