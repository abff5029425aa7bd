"""Where alerts go: once each, again until they are accepted, and without a secret in a log."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from tests.waiting import wait_until

from vllm_monitor.clock import ManualClock
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.guardrails import AlertRouter, parse_destination
from vllm_monitor.guardrails.routing import GIVE_UP_SECONDS, MOST_WAITING, REPEAT_SECONDS
from vllm_monitor.records import Alert, AlertState, Severity

FIRING = Alert(
    timestamp=100.0,
    name="engine_stall",
    state=AlertState.FIRING,
    severity=Severity.CRITICAL,
    message="Work waits",
    fired_at=102.0,
    target="http://gpu1:8000",
    metadata={"runbook": "Look at it."},
    alert_id="a",
)
RESOLVED = replace(FIRING, state=AlertState.RESOLVED, resolved_at=200.0, metadata={"resolved_because": "it is well"})


class Webhook:
    """Accepts what it is sent, or not."""

    def __init__(self) -> None:
        self.accepts = True
        self.attempts = 0
        self.received: list[Any] = []

    def __call__(self, url: str, body: bytes) -> None:
        self.attempts += 1
        if not self.accepts:
            raise OSError(111, "refused by secret-host/secret-path")
        self.received.append((url, json.loads(body)))


def router(webhook: Webhook, clock: ManualClock, *destinations: str) -> AlertRouter:
    found = [parse_destination(text) for text in destinations or ["json+http://h/p"]]
    return AlertRouter(found, clock=clock, post=webhook, threaded=False)


def test_each_state_is_told_once() -> None:
    webhook, clock = Webhook(), ManualClock(1_000.0)
    one = router(webhook, clock)
    for alert in (FIRING, FIRING, RESOLVED, RESOLVED):
        one.send(alert)
    one.deliver_due()
    assert [body["state"] for _, body in webhook.received] == ["firing", "resolved"]
    assert webhook.received[0][1]["runbook"] == "Look at it."


def test_it_is_tried_again_with_growing_pauses_and_given_up_at_last(caplog: pytest.LogCaptureFixture) -> None:
    webhook, clock = Webhook(), ManualClock(1_000.0)
    webhook.accepts = False
    one = router(webhook, clock)
    one.send(FIRING)
    for _ in range(60):
        one.deliver_due()
        clock.advance(1.0)
    assert 4 <= webhook.attempts <= 8
    webhook.accepts = True
    clock.advance(400.0)
    one.deliver_due()
    assert len(webhook.received) == 1
    webhook.accepts = False
    one.send(RESOLVED)
    for _ in range(20):
        one.deliver_due()
        clock.advance(GIVE_UP_SECONDS / 5)
    assert one.dropped == 1
    assert "secret" not in caplog.text
    assert "json at h" in caplog.text


def test_what_waits_is_bounded() -> None:
    webhook, clock = Webhook(), ManualClock(1_000.0)
    one = router(webhook, clock)
    for number in range(MOST_WAITING + 10):
        one.send(replace(FIRING, alert_id=str(number)))
    assert one.dropped == 10


def test_alertmanager_is_told_again_while_it_fires_and_the_end_comes_last() -> None:
    webhook, clock = Webhook(), ManualClock(1_000.0)
    one = router(webhook, clock, "alertmanager+http://am:9093")
    one.send(FIRING)
    for _ in range(3):
        one.deliver_due()
        clock.advance(REPEAT_SECONDS + 1)
    one.send(RESOLVED)
    for _ in range(3):
        one.deliver_due()
        clock.advance(REPEAT_SECONDS + 1)
    urls = {url for url, _ in webhook.received}
    assert urls == {"http://am:9093/api/v2/alerts"}
    ends = [body[0]["endsAt"] for _, body in webhook.received]
    assert len(ends) == 4
    assert ends[-1] == "1970-01-01T00:03:20+00:00"
    first = webhook.received[0][1][0]
    assert first["labels"] == {"alertname": "engine_stall", "severity": "critical", "instance": "http://gpu1:8000"}
    assert first["startsAt"] == "1970-01-01T00:01:40+00:00"


def test_after_a_restart_only_alertmanager_is_told_again() -> None:
    webhook, clock = Webhook(), ManualClock(1_000.0)
    one = router(webhook, clock, "alertmanager+http://am:9093", "slack+https://hooks.example/x")
    one.resume(FIRING)
    one.send(FIRING)
    one.deliver_due()
    clock.advance(REPEAT_SECONDS + 1)
    one.deliver_due()
    assert [url for url, _ in webhook.received] == ["http://am:9093/api/v2/alerts"]


def test_slack_gets_a_sentence() -> None:
    webhook, clock = Webhook(), ManualClock(1_000.0)
    one = router(webhook, clock, "slack+https://hooks.example/x")
    one.send(FIRING)
    one.send(RESOLVED)
    one.deliver_due()
    assert [body["text"] for _, body in webhook.received] == [
        "[CRITICAL] engine_stall on http://gpu1:8000: Work waits\nLook at it.",
        "[resolved] engine_stall on http://gpu1:8000: it is well",
    ]


@pytest.mark.parametrize("text", ["http://x", "pager+http://x", "slack+ftp://x", "json+http://", "", "+http://secret"])
def test_nonsense_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_destination(text)
    assert "secret" not in str(refused.value)


@pytest.fixture
def server() -> Iterator[tuple[str, list[bytes]]]:
    """A real server that refuses the first request."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(500 if len(bodies) == 1 else 200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/hook?token=secret", bodies
        running.shutdown()
        thread.join()


def test_over_real_http(server: tuple[str, list[bytes]], caplog: pytest.LogCaptureFixture) -> None:
    url, bodies = server
    caplog.set_level(logging.DEBUG)
    one = AlertRouter([parse_destination(f"json+{url}")])
    one.send(FIRING)
    wait_until(lambda: len(bodies) == 2, "it is tried again")
    one.close()
    assert json.loads(bodies[1])["name"] == "engine_stall"
    assert one.failures == 1
    assert "HTTPError 500" in caplog.text
    assert "secret" not in caplog.text
