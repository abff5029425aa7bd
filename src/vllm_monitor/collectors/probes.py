"""Questions to one server over HTTP. Each returns an observation; none raises."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
from collections.abc import Mapping
from typing import Any

from vllm_monitor.clock import Clock
from vllm_monitor.collectors.canary_stream import CanaryStream
from vllm_monitor.collectors.exposition import PageParser
from vllm_monitor.collectors.http_session import Answer, Connections, read_body
from vllm_monitor.collectors.probe_failures import (
    TruncatedBodyError,
    failure_from_exception,
    failure_from_status,
)
from vllm_monitor.collectors.targets import normalise_target
from vllm_monitor.errors import ConfigurationError, VLLMMonitorError
from vllm_monitor.records import (
    CanaryObservation,
    HealthObservation,
    LoadObservation,
    PageObservation,
    PauseObservation,
    ProbeFailure,
    VersionObservation,
)

__all__ = ["DEFAULT_MAX_PAGE_BYTES", "DEFAULT_TIMEOUT_SECONDS", "TargetProbe"]

DEFAULT_TIMEOUT_SECONDS = 3.0
DEFAULT_MAX_PAGE_BYTES = 16 * 2**20

_MAX_SMALL_BYTES = 2**20
_ASK_MISSING_ROUTE_AGAIN_SECONDS = 300.0
_MAX_NAME_LENGTH = 256
_MAX_MODELS = 64


class TargetProbe:
    """Asks one server. Belongs to the event loop of its ``connections``; its probes may overlap.

    ``timestamp`` of each observation is when the request began, ``latency_seconds`` how long the answer
    took on the monotonic clock. What goes wrong is in ``failure``; only cancellation is passed on.

    Args:
        url: The server, in any form that :func:`~vllm_monitor.collectors.targets.normalise_target` accepts.
        clock: Where time comes from.
        connections: Shared by all probes of the process.
        api_key: Sent as bearer token; appears in no message.
        timeout_seconds: For a whole answer.
        ca_file: PEM file of certificate authorities to trust for https.
        insecure: Accept any certificate.
        max_page_bytes: A larger page is refused without reading it.

    Raises:
        ConfigurationError: When the URL, the key or the file makes no sense.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        connections: Connections,
        api_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        ca_file: str | None = None,
        insecure: bool = False,
        max_page_bytes: int = DEFAULT_MAX_PAGE_BYTES,
    ) -> None:
        self.url = normalise_target(url)
        self._clock = clock
        self._connections = connections
        self._headers = authorisation_headers(api_key)
        self._timeout_seconds = timeout_seconds
        # Loading the system's authorities takes long, so only where they are asked for.
        needs_tls = ca_file is not None or self.url.startswith("https:")
        self._tls: ssl.SSLContext | bool = connections.tls_context(ca_file, insecure=insecure) if needs_tls else True
        self._max_page_bytes = max_page_bytes
        self._parser = PageParser()
        self._ask_pause_again_at = -math.inf

    def __repr__(self) -> str:
        return f"TargetProbe({self.url!r})"

    async def scrape(self) -> PageObservation:
        """Read ``/metrics``."""
        timestamp, began = self._clock.now(), self._clock.monotonic()
        url = f"{self.url}/metrics"
        answer = await self._get(url, self._max_page_bytes)
        # The result is there when it has arrived; parsing it is our own time, and short.
        latency = self._clock.monotonic() - began
        page, failure = None, answer.failure
        if failure is None:
            try:
                page = self._parser.parse(answer.body)
                if page.truncated:
                    raise TruncatedBodyError
            except (VLLMMonitorError, TruncatedBodyError) as error:
                page, failure = None, failure_from_exception(error, url, self._timeout_seconds)
        return PageObservation(
            target=self.url,
            timestamp=timestamp,
            latency_seconds=latency,
            layout=None if page is None else page.layout,
            values=None if page is None else page.values,
            status=answer.status,
            failure=failure,
            malformed_lines=0 if page is None else page.malformed_lines,
        )

    async def health(self) -> HealthObservation:
        """Ask ``/health``. Any status is a result; ``failure`` says why there was none."""
        timestamp, began = self._clock.now(), self._clock.monotonic()
        answer = await self._get(f"{self.url}/health", _MAX_SMALL_BYTES)
        return HealthObservation(
            target=self.url,
            timestamp=timestamp,
            latency_seconds=self._clock.monotonic() - began,
            status=answer.status,
            failure=answer.failure if answer.status is None else None,
        )

    async def version(self) -> VersionObservation:
        """Ask ``/version`` and ``/v1/models``; what is not answered stays empty."""
        timestamp, began = self._clock.now(), self._clock.monotonic()
        version, models = await asyncio.gather(
            self._get_document(f"{self.url}/version"), self._get(f"{self.url}/v1/models", _MAX_SMALL_BYTES)
        )
        return VersionObservation(
            target=self.url,
            timestamp=timestamp,
            latency_seconds=self._clock.monotonic() - began,
            version=_short_text(version.get("version")),
            models=() if models.failure is not None else _model_names(_document(models.body)),
            models_failure=models.failure,
        )

    async def load(self) -> LoadObservation:
        """Ask ``/load``."""
        timestamp, began = self._clock.now(), self._clock.monotonic()
        document = await self._get_document(f"{self.url}/load")
        load = document.get("server_load")
        known = isinstance(load, (int, float)) and not isinstance(load, bool) and math.isfinite(load)
        return LoadObservation(
            target=self.url,
            timestamp=timestamp,
            latency_seconds=self._clock.monotonic() - began,
            server_load=float(load) if known and load is not None else None,
        )

    async def is_paused(self) -> PauseObservation:
        """Ask ``/is_paused``. Where the route does not exist, the server is asked again only rarely."""
        timestamp, began = self._clock.now(), self._clock.monotonic()
        paused: bool | None = None
        if began >= self._ask_pause_again_at:
            answer = await self._get(f"{self.url}/is_paused", _MAX_SMALL_BYTES)
            if answer.status in {404, 405}:
                self._ask_pause_again_at = began + _ASK_MISSING_ROUTE_AGAIN_SECONDS
            elif answer.failure is None:
                value = _document(answer.body).get("is_paused")
                paused = value if isinstance(value, bool) else None
        latency = self._clock.monotonic() - began
        return PauseObservation(target=self.url, timestamp=timestamp, latency_seconds=latency, is_paused=paused)

    def server_restarted(self) -> None:
        """Forget what was learned of the server's routes: another process answers now."""
        self._ask_pause_again_at = -math.inf

    async def canary(self, model: str, timeout_seconds: float = 5.0) -> CanaryObservation:
        """Ask for a single token, as a client would, and wait for it.

        Args:
            model: The name under which the model is served.
            timeout_seconds: For the whole answer.
        """
        timestamp, began = self._clock.now(), self._clock.monotonic()
        url = f"{self.url}/v1/completions"
        stream = CanaryStream(url)
        status: int | None = None
        failure: ProbeFailure | None = None
        first_token_at: float | None = None
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                self._connections.request(
                    "POST",
                    url,
                    headers=self._headers,
                    tls=self._tls,
                    json={"model": model, "prompt": "Hi", "max_tokens": 1, "temperature": 0, "stream": True},
                ) as response,
            ):
                status = response.status
                async for chunk in response.content.iter_any():
                    stream.feed(chunk)
                    if first_token_at is None and stream.has_token:
                        first_token_at = self._clock.monotonic()
            if status != 200:
                failure = failure_from_status(status, url, api_key_given=bool(self._headers))
            else:
                stream.finish()
                first_token_at = first_token_at or (self._clock.monotonic() if stream.has_token else None)
                failure = stream.failure
        except Exception as error:
            failure = failure_from_exception(error, url, timeout_seconds)
        return CanaryObservation(
            target=self.url,
            timestamp=timestamp,
            latency_seconds=self._clock.monotonic() - began,
            ok=failure is None,
            status=status,
            failure=failure,
            time_to_first_token_seconds=None if first_token_at is None else first_token_at - began,
        )

    async def _get(self, url: str, max_bytes: int) -> Answer:
        status: int | None = None
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
                self._connections.request("GET", url, headers=self._headers, tls=self._tls) as response,
            ):
                status = response.status
                if status != 200:
                    failure = failure_from_status(status, url, api_key_given=bool(self._headers))
                    return Answer(status, failure=failure)
                return Answer(status, await read_body(response, max_bytes))
        except Exception as error:
            # Whatever goes wrong on the way to a server is a fact about the server; only cancellation passes.
            return Answer(status, failure=failure_from_exception(error, url, self._timeout_seconds))

    async def _get_document(self, url: str) -> Mapping[str, Any]:
        answer = await self._get(url, _MAX_SMALL_BYTES)
        return {} if answer.failure is not None else _document(answer.body)


def authorisation_headers(api_key: str | None) -> dict[str, str]:
    """The header that carries a key.

    Raises:
        ConfigurationError: When the key cannot stand in a header.
    """
    if not api_key:
        return {}
    if not api_key.isascii() or not api_key.isprintable():
        raise ConfigurationError(
            "the API key holds characters that cannot stand in a header",
            hint="check for a line end or blanks around the key",
        )
    return {"Authorization": f"Bearer {api_key}"}


def _document(body: bytes) -> Mapping[str, Any]:
    """A JSON object; anything else is as good as no answer."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _short_text(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _MAX_NAME_LENGTH else None


def _model_names(document: Mapping[str, Any]) -> tuple[str, ...]:
    data = document.get("data")
    if not isinstance(data, list):
        return ()
    names = (_short_text(entry.get("id")) for entry in data[:_MAX_MODELS] if isinstance(entry, dict))
    return tuple(name for name in names if name is not None)
