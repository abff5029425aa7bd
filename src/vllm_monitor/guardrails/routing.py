"""Where alerts go: webhooks in the formats of Alertmanager and Slack, or as plain JSON.

A destination is a URL with its format before it: ``alertmanager+http://host:9093``, ``slack+https://hooks...``,
``json+https://host/path``. Deliveries are made by a thread of our own, tried again with growing pauses, and each state
of an alert reaches a destination once; Alertmanager, which forgets what is not repeated, is told again while it fires.
URLs may hold secrets: they are never logged or stored.
"""

from __future__ import annotations

import json
import logging
import threading
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from vllm_monitor.clock import Clock, SystemClock
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.records import Alert, AlertState, Severity

__all__ = ["AlertRouter", "Destination", "parse_destination"]

_log = logging.getLogger(__name__)

MOST_WAITING = 1_000
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 300.0
GIVE_UP_SECONDS = 3_600.0
REPEAT_SECONDS = 120.0
TIMEOUT_SECONDS = 10.0
_REMEMBERED = 10_000
_MARKS = {Severity.INFO: "info", Severity.WARNING: "warning", Severity.CRITICAL: "CRITICAL"}

Post = Callable[[str, bytes], None]


@dataclass(frozen=True, slots=True)
class Destination:
    """One webhook.

    Args:
        kind: ``alertmanager``, ``slack`` or ``json``.
        url: Where to post.
    """

    kind: str
    url: str = field(repr=False)

    @property
    def name(self) -> str:
        """What may be said of it: its kind and host, no path and no user."""
        return f"{self.kind} at {urlsplit(self.url).hostname}"

    def body(self, alert: Alert, now: float) -> bytes:
        """What is posted for an alert."""
        if self.kind == "alertmanager":
            return json.dumps([_for_alertmanager(alert, now)]).encode()
        if self.kind == "slack":
            return json.dumps({"text": _sentence(alert)}).encode()
        return json.dumps(_plain(alert), default=str).encode()


def parse_destination(text: str) -> Destination:
    """A destination as it is written in settings.

    Raises:
        ConfigurationError: When the format is not known, or the URL is none; the message does not repeat it.
    """
    kind, plus, url = text.partition("+")
    parts = urlsplit(url)
    if not plus or kind not in _PATHS or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            "a webhook for alerts makes no sense",
            hint="write alertmanager+http://HOST:9093, slack+https://hooks.slack.com/... or json+https://HOST/PATH",
        )
    path = _PATHS[kind]
    if path and not parts.path.rstrip("/"):
        url = f"{url.rstrip('/')}{path}"
    return Destination(kind, url)


_PATHS = {"alertmanager": "/api/v2/alerts", "slack": "", "json": ""}


@dataclass(slots=True)
class _Delivery:
    destination: Destination
    alert: Alert
    due_at: float
    began_at: float
    pause_seconds: float = FIRST_RETRY_SECONDS


class AlertRouter:
    """Delivers alerts to webhooks. Thread-safe; :meth:`send` only queues.

    Args:
        destinations: Where to.
        clock: Where time comes from.
        post: Makes one request and raises ``OSError`` when it was not accepted.
        threaded: ``False`` delivers only in :meth:`deliver_due`, for tests.
    """

    def __init__(
        self,
        destinations: Iterable[Destination],
        *,
        clock: Clock | None = None,
        post: Post | None = None,
        threaded: bool = True,
    ) -> None:
        self.failures = 0
        """Attempts that failed."""
        self.dropped = 0
        """Deliveries that were given up."""
        self._destinations = tuple(destinations)
        self._clock = clock if clock is not None else SystemClock()
        self._post = post if post is not None else _post
        self._lock = threading.Lock()
        self._waiting: deque[_Delivery] = deque()
        self._sent: dict[tuple[str, str | None, AlertState], None] = {}
        self._firing: dict[str, Alert] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if self._destinations and threaded:
            self._thread = threading.Thread(target=self._run, name="vllm-monitor-alerts", daemon=True)
            self._thread.start()

    def send(self, alert: Alert) -> None:
        """Queue an alert that began to fire or was resolved; one that was queued before is not queued again."""
        now = self._clock.monotonic()
        with self._lock:
            if alert.state is AlertState.FIRING:
                self._firing[alert.alert_id or alert.name] = alert
            else:
                self._firing.pop(alert.alert_id or alert.name, None)
                # Of Alertmanager the newest state is all that counts: nothing older may come after it.
                self._waiting = deque(
                    one
                    for one in self._waiting
                    if one.alert.alert_id != alert.alert_id or one.destination.kind != "alertmanager"
                )
            for destination in self._destinations:
                key = (destination.url, alert.alert_id, alert.state)
                if key in self._sent:
                    continue
                self._sent[key] = None
                self._queue(_Delivery(destination, alert, now, now))
            while len(self._sent) > _REMEMBERED:
                del self._sent[next(iter(self._sent))]
        self._wake.set()

    def resume(self, alert: Alert) -> None:
        """An alert that fired already when this process began: told again only where it would be forgotten."""
        with self._lock:
            self._firing[alert.alert_id or alert.name] = alert
            for destination in self._destinations:
                self._sent[destination.url, alert.alert_id, alert.state] = None

    def deliver_due(self) -> float:
        """Deliver what is due; seconds until there may be more to do."""
        now = self._clock.monotonic()
        for delivery in self._take_due(now):
            try:
                self._post(delivery.destination.url, delivery.destination.body(delivery.alert, self._clock.now()))
            except OSError as error:
                self._fail(delivery, error)
        self._repeat(now)
        with self._lock:
            next_at = min((one.due_at for one in self._waiting), default=now + REPEAT_SECONDS)
        return max(0.05, min(next_at - self._clock.monotonic(), REPEAT_SECONDS))

    def close(self) -> None:
        """Try once more to deliver what waits, then end."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(TIMEOUT_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            pause = 1.0
            try:
                pause = self.deliver_due()
            except Exception:  # alerts of later go out all the same
                _log.exception("delivering alerts failed")
            self._wake.wait(pause)
            self._wake.clear()
        self.deliver_due()

    def _queue(self, delivery: _Delivery) -> None:
        self._waiting.append(delivery)
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            self.dropped += 1

    def _take_due(self, now: float) -> list[_Delivery]:
        with self._lock:
            due = [one for one in self._waiting if one.due_at <= now]
            self._waiting = deque(one for one in self._waiting if one.due_at > now)
        return due

    def _fail(self, delivery: _Delivery, error: OSError) -> None:
        now = self._clock.monotonic()
        # The text of an error may hold the URL; its kind and number say enough.
        code = getattr(error, "code", None) or getattr(getattr(error, "reason", error), "errno", None)
        what = f"alert {delivery.alert.name} was not accepted by {delivery.destination.name}"
        with self._lock:
            self.failures += 1
            if now - delivery.began_at > GIVE_UP_SECONDS:
                self.dropped += 1
                _log.error("%s for an hour and is given up", what)
                return
            delivery.due_at = now + delivery.pause_seconds
            delivery.pause_seconds = min(delivery.pause_seconds * 2, LONGEST_RETRY_SECONDS)
            self._queue(delivery)
        _log.warning("%s (%s %s); it is tried again", what, type(error).__name__, code)

    def _repeat(self, now: float) -> None:
        """Alertmanager resolves by itself what it is not told again."""
        with self._lock:
            for destination in self._destinations:
                if destination.kind != "alertmanager":
                    continue
                waiting = {one.alert.alert_id for one in self._waiting if one.destination is destination}
                for alert in self._firing.values():
                    if alert.alert_id not in waiting:
                        self._queue(_Delivery(destination, alert, now + REPEAT_SECONDS, now))


def _post(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  # checked to be http
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310  # likewise
        pass


def _for_alertmanager(alert: Alert, now: float) -> Mapping[str, Any]:
    """https://prometheus.io/docs/alerting/latest/alerts_api/."""
    ends = alert.resolved_at if alert.resolved_at is not None else now + 3 * REPEAT_SECONDS
    return {
        "labels": {
            "alertname": alert.name,
            "severity": alert.severity.value,
            "instance": alert.target,
            **{name: str(value) for name, value in alert.labels.items()},
        },
        "annotations": {
            "summary": alert.message,
            "runbook": str(alert.metadata.get("runbook", "")),
        },
        "startsAt": _iso(alert.timestamp),
        "endsAt": _iso(ends),
    }


def _sentence(alert: Alert) -> str:
    if alert.state is AlertState.RESOLVED:
        return f"[resolved] {alert.name} on {alert.target}: {alert.metadata.get('resolved_because', '')}"
    runbook = alert.metadata.get("runbook")
    return f"[{_MARKS[alert.severity]}] {alert.name} on {alert.target}: {alert.message}" + (
        f"\n{runbook}" if runbook else ""
    )


def _plain(alert: Alert) -> Mapping[str, Any]:
    return {
        "alert_id": alert.alert_id,
        "name": alert.name,
        "target": alert.target,
        "state": alert.state.value,
        "severity": alert.severity.value,
        "message": alert.message,
        "since": alert.timestamp,
        "fired_at": alert.fired_at,
        "resolved_at": alert.resolved_at,
        "values": alert.values,
        "intervention": alert.intervention,
        "runbook": alert.metadata.get("runbook"),
    }


def _iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat()
