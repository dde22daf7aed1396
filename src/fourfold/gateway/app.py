"""The gateway's HTTP application: which path is answered by what. The framework lives here and in ``app_*.py``."""

from collections.abc import Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from fourfold.config import GatewaySettings
from fourfold.engine.base import EngineCard
from fourfold.gateway import app_errors, app_info
from fourfold.gateway.app_edge import Edge
from fourfold.gateway.app_stream import stream_endpoint
from fourfold.gateway.app_upscale import upscale_endpoint
from fourfold.gateway.board import JobBoard
from fourfold.gateway.discovery import Discovery
from fourfold.gateway.dispatch import Dispatcher
from fourfold.gateway.ports import Clock, SystemClock
from fourfold.processes.lingering import Lingering
from fourfold.protocol import routes
from fourfold.results.base import ResultStore
from fourfold.telemetry import Metrics


def create_app(
    settings: GatewaySettings,
    *,
    board: JobBoard,
    discovery: Discovery,
    dispatcher: Dispatcher,
    store: ResultStore,
    metrics: Metrics,
    cards: Mapping[str, EngineCard],
    spool: Path,
    clock: Clock | None = None,
) -> ASGIApp:
    """Return the gateway as an ASGI application.

    Args: *cards*, what the local registry knows of each model; *spool*, an existing folder for the files of open jobs.
        The lifetimes of the parts are the caller's: ``discovery.run()`` runs beside the server, ``board.drain()``
        comes before its end, *dispatcher* is left after it.
    """
    metrics.watch_peers(up=lambda: len(discovery) - len(discovery.troubles()), down=lambda: len(discovery.troubles()))
    upscale = upscale_endpoint(
        settings, board=board, dispatcher=dispatcher, store=store, spool=spool, clock=clock or SystemClock()
    )
    table = [
        Route(path + slash, upscale, methods=["POST"])
        for path in (routes.UPSCALE, *routes.UPSCALE_ALIASES)
        for slash in ("", "/")
    ]
    gets = {
        routes.STREAM + "/{group}/{name}": stream_endpoint(store),
        routes.MODELS: app_info.models_endpoint(discovery, settings, cards),
        routes.HEALTHZ: app_info.alive,
        routes.LIVEZ: app_info.alive,
        routes.READYZ: app_info.ready_endpoint(discovery, board),
        routes.METRICS: app_info.metrics_endpoint(metrics),
        "/openapi.json": app_info.openapi_endpoint(),
    }
    table += [Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()]
    application = Starlette(routes=table, exception_handlers=app_errors.handlers(metrics))
    application.router.redirect_slashes = False
    return Lingering(Edge(application, private_paths={routes.METRICS}))
