"""The other routes of the simulated server, and the ones that inject faults."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from vllm_monitor.clock import Clock
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.simulator.beat import Beat
from vllm_monitor.simulator.completions import CompletionRoute
from vllm_monitor.simulator.faults import Fault, FaultKind, parse_fault
from vllm_monitor.simulator.phases import Lever
from vllm_monitor.simulator.simulator import Simulator

__all__ = ["ServedVersion", "make_application"]

ServedVersion = "0.32.0"
_PAGE_TYPE = "text/plain; version=1.0.0; charset=utf-8"
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Routes:
    """The handlers; see :func:`make_application` for the fields."""

    simulator: Simulator
    beat: Beat
    clock: Clock
    speed: float
    tracks_load: bool

    async def metrics(self, _: web.Request) -> web.Response:
        await self._lag()
        if not self.simulator.reachable:
            return web.Response(status=503)
        return web.Response(body=self.simulator.page().encode(), headers={"Content-Type": _PAGE_TYPE})

    async def health(self, _: web.Request) -> web.Response:
        await self._lag()
        return web.Response(status=self.simulator.health_status() or 503)

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": ServedVersion})

    async def models(self, _: web.Request) -> web.Response:
        simulator = self.simulator
        name = simulator.settings.model
        card = {
            "id": name,
            "object": "model",
            "created": int(simulator.unix_time),
            "owned_by": "vllm",
            "root": name,
            "parent": None,
            "max_model_len": simulator.settings.engine.max_model_len,
            "permission": [],
        }
        response = web.json_response({"object": "list", "data": [card]})
        if simulator.life is not None:
            simulator.life.http.observe(("/v1/models", "GET"), "2xx", 0.002, 0, 440)
        return response

    async def load(self, _: web.Request) -> web.Response:
        # A real server says 0 unless it was told to count.
        in_flight = self.simulator.visible_in_flight if self.tracks_load else 0
        return web.json_response({"server_load": in_flight})

    async def is_paused(self, _: web.Request) -> web.Response:
        return web.json_response({"is_paused": self.simulator.is_paused})

    async def pause(self, request: web.Request) -> web.Response:
        mode = request.query.get("mode", "abort")
        if mode not in ("keep", "abort"):
            return _bad_request(f"the simulator cannot pause with mode {mode!r}; use keep or abort")
        return await self._apply(self.simulator.pause(abort=mode == "abort"), "paused")

    async def resume(self, _: web.Request) -> web.Response:
        return await self._apply(self.simulator.resume(), "resumed")

    async def show_faults(self, _: web.Request) -> web.Response:
        return web.json_response(self._faults())

    async def add_fault(self, request: web.Request) -> web.Response:
        """Inject a fault that starts now, or ``start_seconds`` from now."""
        try:
            fault = _read_fault(await request.read(), self.simulator.now_seconds)
        except ConfigurationError as error:
            return _bad_request(str(error))
        self.simulator.inject(fault)
        return web.json_response(self._faults())

    async def clear_faults(self, _: web.Request) -> web.Response:
        self.simulator.clear_faults()
        return web.json_response(self._faults())

    def _faults(self) -> dict[str, Any]:
        return {
            "now_seconds": self.simulator.now_seconds,
            "active": [str(fault) for fault in self.simulator.active_faults],
            "planned": [str(fault) for fault in self.simulator.planned_faults],
        }

    async def _lag(self) -> None:
        await self.clock.sleep(self.simulator.scrape_latency_seconds / self.speed)

    async def _apply(self, lever: Lever, status: str) -> web.Response:
        """Answer when the engine has done it: a frozen one does not until it thaws, if it ever does."""
        while not lever.applied:
            await self.beat.wait()
        return web.json_response({"status": status})


def make_application(
    simulator: Simulator,
    beat: Beat,
    clock: Clock,
    *,
    speed: float = 1.0,
    dev_mode: bool = False,
    api_key: str | None = None,
    tracks_load: bool = False,
) -> web.Application:
    """The HTTP front of the simulated server.

    Args:
        simulator: The simulated server; somebody else advances it.
        beat: Struck after each advance.
        clock: Delays answers as a busy server would.
        speed: Simulated seconds per second.
        dev_mode: Also serve the development routes (``/is_paused``, ``/pause``, ``/resume``).
        api_key: Bearer token that guards ``/v1``.
        tracks_load: Whether ``/load`` counts.
    """
    routes = _Routes(simulator=simulator, beat=beat, clock=clock, speed=speed, tracks_load=tracks_load)
    application = web.Application(middlewares=[_guard(api_key, simulator)] if api_key else [])
    application.add_routes(
        [
            web.get("/metrics", routes.metrics),
            web.get("/health", routes.health),
            web.get("/version", routes.version),
            web.get("/load", routes.load),
            web.get("/v1/models", routes.models),
            web.post("/v1/completions", CompletionRoute(simulator, beat).handle),
            web.get("/simulator/fault", routes.show_faults),
            web.post("/simulator/fault", routes.add_fault),
            web.delete("/simulator/fault", routes.clear_faults),
        ]
    )
    if dev_mode:
        application.add_routes(
            [
                web.get("/is_paused", routes.is_paused),
                web.post("/pause", routes.pause),
                web.post("/resume", routes.resume),
            ]
        )
    return application


def _guard(api_key: str, simulator: Simulator) -> Any:  # what @web.middleware makes has no public type
    @web.middleware
    async def check(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.path.startswith("/v1") and request.headers.get("Authorization") != f"Bearer {api_key}":
            row = (request.path, request.method)
            if simulator.life is not None and row in (("/v1/models", "GET"), ("/v1/completions", "POST")):
                simulator.life.http.observe(row, "4xx", 0.001, 0, 24)
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    return check


def _read_fault(body: bytes, now_seconds: float) -> Fault:
    """A fault from JSON: ``{"fault": "freeze@0+15"}`` or ``{"kind": "freeze", "duration_seconds": 15}``."""
    try:
        wish = json.loads(body)
        if "fault" in wish:
            spec = str(wish["fault"])
            kind, at, rest = spec.partition("@")
            relative = parse_fault(spec if at else f"{kind}@0{rest}")
            wish = {name: getattr(relative, name) for name in Fault.__slots__}
        start = now_seconds + float(wish.pop("start_seconds", 0.0))
        kind = FaultKind(wish.pop("kind"))
        return Fault(kind, start, **wish)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(
            "the body describes no fault", hint='Send {"fault": "freeze@0+15"}; the start counts from now.'
        ) from error


def _bad_request(message: str) -> web.Response:
    return web.json_response({"error": message}, status=400)
