"""What the gateway tells about itself: models on offer, health, metrics, its own description."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fourfold.config import GatewaySettings, LimitSettings
from fourfold.engine.base import EngineCard
from fourfold.errors import NoOrchestratorError
from fourfold.gateway.board import JobBoard
from fourfold.gateway.discovery import Discovery
from fourfold.gateway.openapi import document
from fourfold.gateway.selection import Offer, resolve_model
from fourfold.protocol.units import WEI_PER_ETH
from fourfold.telemetry import EXPOSITION_TYPE, Metrics

Endpoint = Callable[[Request], Awaitable[Response]]


def models_endpoint(discovery: Discovery, settings: GatewaySettings, cards: Mapping[str, EngineCard]) -> Endpoint:
    """Return the handler of ``GET /models``."""

    async def models(_: Request) -> Response:
        offers: dict[str, list[Offer]] = {model_id: [] for model_id in discovery.offered_models()}
        for offer in discovery.offers():
            offers[offer.model_id].append(offer)
        default: str | None
        try:
            default = resolve_model("", offered=offers, known=cards, default_model=settings.default_model)
        except NoOrchestratorError:
            default = settings.default_model
        listed = [_model(model_id, found, cards.get(model_id), settings) for model_id, found in offers.items()]
        body = {
            "default_model": default,
            "models": listed,
            "aliases": dict(settings.model_aliases),
            "limits": _limits(settings.limits),
        }
        return JSONResponse(body)

    return models


def _model(model_id: str, offers: list[Offer], card: EngineCard | None, settings: GatewaySettings) -> dict[str, Any]:
    """Describe one model; what only its card knows is null where there is no card."""
    cheapest_first = sorted(offers, key=lambda offer: (offer.wei_per_pixel, not offer.warm))
    return {
        "model_id": model_id,
        "title": card.title if card else None,
        "scale": card.scale if card else None,
        "guided_by_prompt": card.guided_by_prompt if card else None,
        "default_steps": card.default_steps if card else None,
        "licence": {"code": card.code_licence, "weights": card.weights_licence} if card else None,
        "warm": any(offer.warm for offer in offers),
        "capacity": sum(offer.capacity for offer in offers),
        "offers": [_offer(offer, settings.usd_per_eth) for offer in cheapest_first],
    }


def _offer(offer: Offer, usd_per_eth: float) -> dict[str, Any]:
    """Describe one offer. Who makes it stays with the operator: addresses of orchestrators are no public matter."""
    usd = float(offer.wei_per_pixel) * usd_per_eth / WEI_PER_ETH
    return {
        "price_per_unit": 0 if offer.price is None else offer.price.price_per_unit,
        "pixels_per_unit": 1 if offer.price is None else offer.price.pixels_per_unit,
        "wei_per_input_pixel": float(offer.wei_per_pixel),
        "usd_per_input_pixel": usd,
        "warm": offer.warm,
        "capacity": offer.capacity,
    }


def _limits(limits: LimitSettings) -> dict[str, int]:
    return {
        "upload_bytes": limits.upload_bytes,
        "input_pixels": limits.input_pixels,
        "side_px": limits.side_px,
        "prompt_chars": limits.prompt_chars,
        "num_inference_steps": limits.steps,
    }


async def alive(_: Request) -> Response:
    """Answer that the event loop turns."""
    return JSONResponse({"status": "ok"})


def ready_endpoint(discovery: Discovery, board: JobBoard) -> Endpoint:
    """Return the handler of ``GET /readyz``: 200 once a job could be taken."""

    async def ready(_: Request) -> Response:
        offers = discovery.offers()
        reasons = [f"{name}: {why}" for name, why in discovery.troubles().items()]
        if board.is_draining:
            reasons.insert(0, "shutting down")
        is_ready = any(offer.capacity for offer in offers) and not board.is_draining
        if not is_ready and not reasons:
            reasons.append("no orchestrator is configured" if not offers else "no orchestrator has room")
        warm = {model_id: False for model_id in discovery.offered_models()}
        for offer in offers:
            warm[offer.model_id] |= offer.warm
        models = {model_id: "warm" if is_warm else "cold" for model_id, is_warm in warm.items()}
        body = {"status": "ready" if is_ready else "not ready", "reasons": reasons, "models": models}
        return JSONResponse(body, 200 if is_ready else 503, None if is_ready else {"Retry-After": "2"})

    return ready


def metrics_endpoint(metrics: Metrics) -> Endpoint:
    """Return the handler of ``GET /metrics``."""

    async def exposition(_: Request) -> Response:
        return Response(metrics.exposition(), media_type=EXPOSITION_TYPE)

    return exposition


def openapi_endpoint() -> Endpoint:
    """Return the handler of ``GET /openapi.json``."""
    described = document()

    async def openapi(_: Request) -> Response:
        return JSONResponse(described)

    return openapi
