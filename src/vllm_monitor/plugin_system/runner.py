"""The plugins that run: their turns, their failures, and the change from one version to the next."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vllm_monitor.clock import Clock
from vllm_monitor.plugin_system.answers import BadAnswerError
from vllm_monitor.plugin_system.catalogue import Candidate, Entry
from vllm_monitor.plugin_system.delivery import Delivery
from vllm_monitor.plugin_system.process import Failure, PluginFailedError
from vllm_monitor.plugin_system.running import RunningPlugin
from vllm_monitor.records import PLUGIN_VERBS, PluginKind, PluginState, PluginStatus, Severity, TargetView

__all__ = ["PluginRunner", "Views"]

_log = logging.getLogger(__name__)

OWN_METRICS_SECONDS = 15.0
_TRIAL_SECONDS = 10.0
_ASKED_ONCE = {PluginKind.GUARDRAIL: "guardrails", PluginKind.STRATEGY: "describe"}
Views = Callable[[], Mapping[str, TargetView]]
OnDisabled = Callable[[RunningPlugin, str], None]
"""Called with a plugin that failed too often, and why."""


class PluginRunner:
    """Runs plugins that may run. Thread-safe; changes of what runs come from one thread at a time.

    Args:
        delivery: Where their answers go.
        interval_seconds: Time between two turns of a plugin that does not say.
        clock: Where time comes from.
        concurrent: ``False`` has every turn within :meth:`step`.
        on_disabled: Called with a plugin that is given up, out of a turn of it.
    """

    def __init__(
        self, delivery: Delivery, *, interval_seconds: float, clock: Clock, concurrent: bool, on_disabled: OnDisabled
    ) -> None:
        self._delivery = delivery
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._is_concurrent = concurrent
        self._on_disabled = on_disabled
        self._lock = threading.RLock()
        self._running: dict[str, RunningPlugin] = {}
        self._rejected: dict[str, tuple[Candidate, str]] = {}
        self._results: dict[str, Any] = {}
        self._own_metrics_at = clock.monotonic()
        self._trials: set[RunningPlugin] = set()
        self.is_started = False

    def get(self, name: str) -> RunningPlugin | None:
        """A plugin that runs."""
        return self._running.get(name)

    def rejection(self, candidate: Candidate) -> str:
        """Why this version could not take the place of the one that runs; empty when it was not tried."""
        rejected = self._rejected.get(candidate.name)
        return rejected[1] if rejected is not None and rejected[0] == candidate else ""

    def status(self, entry: Entry) -> PluginStatus:
        """A plugin that there is, and how it is doing if it runs."""
        name = entry.record.name
        running = self._running.get(name)
        record, state, reason = entry.record, entry.state, entry.reason
        if not record.plugin_type and entry.candidate is not None:
            record = replace(record, plugin_type=entry.candidate.kind.value)
        if running is None:
            return PluginStatus(record, state, reason, entry.sha256)
        if entry.candidate is None:
            reason = f"as it was before: what is stored now is {state}: {reason}"
        elif why := self.rejection(entry.candidate):
            reason = f"as it was before: what is stored now cannot be loaded: {why}"
        elif running.last_error and not reason:
            reason = f"last failure: {running.last_error}"
        return PluginStatus(
            record,
            PluginState.RUNNING,
            reason,
            running.candidate.sha256,
            running.calls,
            running.failures,
            running.timeouts,
            running.last_error,
            running.call_seconds / running.calls if running.calls else None,
            {"pid": running.pid},
        )

    def start(self) -> None:
        """Run what :meth:`bring_about` and :meth:`take_over` say from now on."""
        self.is_started = True

    def stop(self) -> None:
        """End all processes, those of trials that are under way as well."""
        self.is_started = False
        with self._lock:
            stopped, self._running = [*self._running.values(), *self._trials], {}
        for running in stopped:
            running.kill()
        for running in stopped:
            running.retire()

    def try_out(self, candidate: Candidate) -> RunningPlugin:
        """The plugin, loaded in a process of its own; nothing of what runs is touched.

        Raises:
            PluginFailedError: When it cannot be loaded.
            BadAnswerError: When what it answers then makes no sense.
        """
        trial = RunningPlugin(candidate, self._interval_seconds, clock=self._clock)
        with self._lock:
            self._trials.add(trial)
        try:
            self._begin(trial, trial=True)
        except OSError as error:
            raise PluginFailedError(f"no process can be started: {error}", Failure.NOT_ASKED) from None
        except BaseException:
            trial.retire()
            raise
        finally:
            with self._lock:
                self._trials.discard(trial)
        return trial

    def take_over(self, fresh: RunningPlugin) -> None:
        """Let a plugin that is loaded run instead of the one before."""
        name = fresh.candidate.name
        with self._lock:
            self._rejected.pop(name, None)
            before = self._running.pop(name, None)
            if self.is_started:
                self._running[name] = fresh
        if before is not None:
            before.retire()
        if not self.is_started:
            fresh.retire()

    def bring_about(self, entries: Mapping[str, Entry], is_trusted: Callable[[str], bool]) -> None:
        """Let run what may run; keep what runs when what should replace it cannot.

        Args:
            entries: Every plugin that there is, in the order in which they are loaded.
            is_trusted: Whether a source may run.
        """
        for name in [name for name in self._running if name not in entries]:
            self.end(name)
        for name, entry in entries.items():
            if not self.is_started:
                return  # it was stopped meanwhile
            current, wanted = self._running.get(name), entry.candidate
            if wanted is not None:
                try:
                    self._replace(current, wanted)
                except Exception:  # whatever it is, it must not keep the others from running
                    _log.exception("plugin %s could not be brought to run", name)
                continue
            stored_only = entry.state in (PluginState.UNTRUSTED, PluginState.INVALID)  # what runs is another source
            if current is not None and not (stored_only and is_trusted(current.candidate.sha256)):
                self.end(name)
                if entry.state is not PluginState.DISABLED:  # that was told by whoever did it
                    words = f"plugin {name} was stopped: it is {entry.state}: {entry.reason}"
                    self._delivery.tell("plugin_stopped", words, Severity.WARNING, plugin=name)

    def end(self, name: str) -> None:
        """End one, if it runs."""
        with self._lock:
            running = self._running.pop(name, None)
        if running is not None:
            running.retire()
            self._delivery.forget(name)

    def step(self, views: Views) -> None:
        """Give every plugin its turn whose time has come. Waits for none of them, unless ``concurrent`` is ``False``.

        Args:
            views: Gives the servers by URL; asked only when there is a turn.
        """
        with self._lock:
            due = [running for running in self._running.values() if running.is_due()]
        if due:
            targets = views()
            for running in due:
                running.is_busy = True
                if self._is_concurrent:
                    self._turn_beside(running, targets)
                else:
                    self._turn(running, targets)
        if self._clock.monotonic() >= self._own_metrics_at:
            self._own_metrics_at = self._clock.monotonic() + OWN_METRICS_SECONDS
            with self._lock:
                plugins = dict(self._running)
            self._delivery.keep_figures(plugins)

    def call(self, running: RunningPlugin, verb: str, argument: Any, targets: Mapping[str, TargetView]) -> Any:
        """Call one function of a plugin, now; a failure counts as one of a turn.

        Raises:
            PluginFailedError: When it fails.
        """
        try:
            return running.call(verb, self._context(running.candidate, targets, argument))
        except PluginFailedError as error:
            if error.failure is not Failure.NOT_ASKED:
                self._failed(running, error.message, error.failure)
            raise

    def _replace(self, current: RunningPlugin | None, wanted: Candidate) -> None:
        if current is None:
            with self._lock:
                self._running[wanted.name] = RunningPlugin(wanted, self._interval_seconds, clock=self._clock)
        elif current.candidate != wanted and not self.rejection(wanted):
            try:
                fresh = self.try_out(wanted)
            except (PluginFailedError, BadAnswerError) as error:
                self._reject(wanted, error.message if isinstance(error, PluginFailedError) else str(error))
                return
            self.take_over(fresh)
            words = f"plugin {wanted.name} {wanted.version}".rstrip()
            self._delivery.tell("plugin_reloaded", f"{words} was loaded anew", plugin=wanted.name)

    def _reject(self, wanted: Candidate, why: str) -> None:
        self._rejected[wanted.name] = (wanted, why)
        words = f"plugin {wanted.name} could not be loaded anew, the one before runs on: {why}"
        _log.warning("%s", words)
        self._delivery.tell("plugin_reload_failed", words, Severity.WARNING, plugin=wanted.name)

    def _turn_beside(self, running: RunningPlugin, targets: Mapping[str, TargetView]) -> None:
        # A daemon, unlike the threads of a pool: a program that ends must not wait for a plugin that hangs.
        name = f"vllm-monitor-plugin-{running.candidate.name}"
        turn = threading.Thread(target=self._turn, args=(running, targets), name=name, daemon=True)
        try:
            turn.start()
        except RuntimeError:  # the interpreter is ending, or there are no threads to be had now
            running.is_busy = False

    def _turn(self, running: RunningPlugin, targets: Mapping[str, TargetView]) -> None:
        plugin = running.candidate
        try:
            seen = {url: view for url, view in targets.items() if plugin.target in ("", url)}
            if not running.has_begun:
                self._begin(running)
            once = _ASKED_ONCE.get(plugin.kind)
            if once is None:
                answer = running.call(PLUGIN_VERBS[plugin.kind][0], self._context(plugin, seen, None))
                with self._lock:
                    if self._running.get(plugin.name) is not running:
                        return  # it was switched off or replaced meanwhile
                    if any(plugin.name in other.candidate.needs for other in self._running.values()):
                        self._results[plugin.name] = answer
                self._delivery.take(plugin, answer, seen)
            else:
                running.load()  # it has nothing to do by itself, but if its process died it is there again
            running.note_success()
        except PluginFailedError as error:
            self._failed(running, error.message, error.failure)
        except BadAnswerError as error:
            self._failed(running, str(error), Failure.BAD_ANSWER)
        except Exception:  # a fault of ours, or of the machine: it is not the plugin's
            _log.exception("a turn of plugin %s could not be had", plugin.name)
            running.postpone()
        finally:
            running.is_busy = False

    def _begin(self, running: RunningPlugin, *, trial: bool = False) -> None:
        """Load it, and ask it what is asked once."""
        plugin = running.candidate
        running.load()
        once = _ASKED_ONCE.get(plugin.kind)
        if once is not None:
            answer = running.call(once, self._context(plugin, {}, None), _TRIAL_SECONDS if trial else None)
            self._delivery.begin(plugin, answer, trial=trial)
        running.has_begun = not trial

    def _context(self, plugin: Candidate, targets: Mapping[str, TargetView], argument: Any) -> dict[str, Any]:
        with self._lock:
            results = {name: self._results.get(name) for name in plugin.needs}
        return {
            "now": self._clock.now(),
            "targets": dict(targets),
            "results": results,
            "argument": argument,
        }

    def _failed(self, running: RunningPlugin, error: str, failure: Failure) -> None:
        name = running.candidate.name
        with self._lock:
            if self._running.get(name) is not running:
                return  # it was replaced or switched off meanwhile: whatever it says does not matter any more
        is_over = running.note_failure(error, failure)
        if is_over:
            because = f"it failed {running.failures} times, the last time: {error}"
            self._say(f"plugin {name} is disabled: {because}", "plugin_disabled", name, failure)
            self.end(name)
            self._on_disabled(running, because)
        elif running.is_first_failure:
            self._say(f"plugin {name} failed: {error}", "plugin_failed", name, failure)

    def _say(self, words: str, event_type: str, name: str, failure: Failure) -> None:
        _log.warning("%s", words)
        self._delivery.tell(event_type, words, Severity.WARNING, plugin=name, failure=failure.value)
