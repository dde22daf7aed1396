"""Ask one orchestrator what it offers: ``GetOrchestrator``, once for the list and once for each model.

The call without capabilities is answered with hardware and a price list, the call with capability 30, its capacity key
and a model's constraint with the exact price for that model and a token for jobs.
Source: go-livepeer ``server/rpc.go:getOrchestrator``, ``server/ai_session.go``.
"""

import asyncio
from dataclasses import dataclass
from typing import Final, cast

import grpc
import grpc.aio

from fourfold.errors import ConfigError, FourfoldError, UnreachableError, WorkerFailedError
from fourfold.gateway.orchestrator_url import OrchestratorUrl, parse_orchestrator_url
from fourfold.gateway.pinning import Certificate, Pins
from fourfold.protocol.capabilities import demand, offered_models
from fourfold.protocol.livepeer_pb2 import AuthToken, OrchestratorInfo, OrchestratorRequest
from fourfold.protocol.routes import GRPC_GET_ORCHESTRATOR
from fourfold.protocol.units import Pixels, Price, Wei

#: No orchestrator has that many models; more is nonsense or an attack on our memory.
_MAX_MODELS: Final = 200


@dataclass(frozen=True, slots=True)
class Quote:
    """What one orchestrator says about one model."""

    model_id: str
    url: OrchestratorUrl  #: where it wants jobs
    price: Price | None  #: None = it names none
    auth_token: AuthToken
    warm: bool
    capacity: int  #: 0 = none of its workers answers now, or (go-livepeer) all of it is in use
    capacity_in_use: int
    version: str  #: what it says it is


def is_ours(version: str) -> bool:
    """Return whether an orchestrator of this *version* speaks our additions: ``0.9.1-fourfold.0.1.0``.

    A suffix, so that a Livepeer gateway that asks for a least version still reads the version before it.
    """
    return "fourfold" in version.lower()


async def ask(orchestrator: OrchestratorUrl, *, pins: Pins, timeout_s: float) -> dict[str, Quote]:
    """Return *orchestrator*'s quotes by model id; a model that it lists but does not quote is left out.

    Raises:
        UnreachableError: it did not answer in time, or shows another certificate while pins are strict.
        WorkerFailedError: it answered with nonsense.
    """
    certificate = await pins.get(orchestrator.host, orchestrator.port)
    try:
        return await _ask(orchestrator, certificate, timeout_s)
    except UnreachableError:
        renewed = await pins.renew(orchestrator.host, orchestrator.port, certificate)
        if renewed is certificate:
            raise
        return await _ask(orchestrator, renewed, timeout_s)


async def _ask(orchestrator: OrchestratorUrl, certificate: Certificate, timeout_s: float) -> dict[str, Quote]:
    """Hold the whole conversation on one connection, which is closed afterwards."""
    options = (
        ("grpc.ssl_target_name_override", certificate.name),
        ("grpc.default_authority", orchestrator.authority),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
    )
    credentials = grpc.ssl_channel_credentials(root_certificates=certificate.pem.encode("ascii"))
    async with grpc.aio.secure_channel(orchestrator.authority, credentials, options=options) as channel:
        call = channel.unary_unary(
            GRPC_GET_ORCHESTRATOR,
            request_serializer=OrchestratorRequest.SerializeToString,
            response_deserializer=OrchestratorInfo.FromString,
        )

        async def get(model_id: str | None = None) -> OrchestratorInfo | FourfoldError:
            capabilities = None if model_id is None else demand(model_id)
            try:
                answer = await call(OrchestratorRequest(capabilities=capabilities), timeout=timeout_s)
            except grpc.aio.AioRpcError as exc:
                # Returned, and without its cause: a traceback would keep the call, and the call its connection.
                status, details = exc.code(), exc.details()
            else:
                return cast(OrchestratorInfo, answer)
            if status in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                return UnreachableError(f"{orchestrator} did not answer: {details}")
            return WorkerFailedError(f"{orchestrator} refused to quote: {details}")

        listed = await get()
        if isinstance(listed, FourfoldError):
            raise listed
        model_ids = list(offered_models(listed.capabilities))
        if len(model_ids) > _MAX_MODELS:
            raise WorkerFailedError(f"{orchestrator} lists {len(model_ids)} models, expected {_MAX_MODELS} at most")
        infos = await asyncio.gather(*(get(model_id) for model_id in model_ids))
    quotes: dict[str, Quote] = {}
    failure: str | None = None
    for model_id, info in zip(model_ids, infos, strict=True):
        try:
            if isinstance(info, FourfoldError):
                raise info
            quotes[model_id] = read_quote(info, model_id, seen_at=orchestrator)
        except FourfoldError as exc:
            failure = exc.message
    if failure is not None and not quotes:
        raise WorkerFailedError(failure)
    return quotes


def read_quote(info: OrchestratorInfo, model_id: str, *, seen_at: OrchestratorUrl) -> Quote:
    """Read the answer for one model.

    Raises: WorkerFailedError if it lacks the address, the token or the model, or its price is negative.
    """
    models = offered_models(info.capabilities)
    if not info.transcoder or not info.HasField("auth_token") or model_id not in models:
        raise WorkerFailedError(f"{seen_at} quotes {model_id} without an address, a token or the model itself")
    try:
        url = parse_orchestrator_url(info.transcoder, seen_at=seen_at)
        price = None
        if info.HasField("price_info") and info.price_info.pixelsPerUnit:
            price = Price(Wei(info.price_info.pricePerUnit), Pixels(info.price_info.pixelsPerUnit))
    except (ConfigError, ValueError) as exc:
        raise WorkerFailedError(f"{seen_at} quotes {model_id} with nonsense: {exc}") from exc
    return Quote(
        model_id=model_id,
        url=url,
        price=price,
        auth_token=info.auth_token,
        warm=models[model_id].warm,
        capacity=models[model_id].capacity,
        capacity_in_use=models[model_id].capacity_in_use,
        version=info.capabilities.version,
    )
