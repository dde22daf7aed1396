"""What an orchestrator tells a gateway that asks: its models, their prices, a token for jobs, its hardware.

Two forms of the question. Without capabilities: everything there is, with a price list. With capability 30, its
capacity and a model's constraint: the exact price of that model. Ours names prices off-chain, too, so that a gateway
can tell its user what a picture would cost; Livepeer's leaves them out. A model that is withdrawn is in neither.
Source: go-livepeer ``server/rpc.go`` orchestratorInfo, ``core/orchestrator.go`` priceInfo.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from fourfold import __version__
from fourfold.orchestrator.admission import Tokens
from fourfold.orchestrator.models import ANY_GATEWAY, ModelConfig
from fourfold.orchestrator.pricing import PriceList
from fourfold.orchestrator.workers import Workers
from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol.capabilities import LIVEPEER_VERSION, ModelOffer, demanded_models, offer
from fourfold.protocol.units import Price, price_from_fraction
from fourfold.protocol.wire import PIPELINE, UPSCALE_CAPABILITY

#: Semantic versions compare without the suffix, so this counts as the go-livepeer it is compatible with.
VERSION = f"{LIVEPEER_VERSION}-fourfold.{__version__}"


class Offering:
    """The orchestrator as gateways see it."""

    def __init__(self, models: Sequence[ModelConfig], *, prices: PriceList, workers: Workers, tokens: Tokens) -> None:
        self._model_to_warm = {model.model_id: model.warm for model in models}
        self._prices = prices
        self._workers = workers
        self._tokens = tokens

    def capabilities(self, model_ids: Iterable[str] | None = None) -> pb.Capabilities:
        """Return what can be done with *model_ids*, None: all that are sold.

        A model whose workers are all down is listed at capacity 0.
        """
        ready = [worker for worker in self._workers.workers if worker.is_ready]
        return offer(
            (self._model(model_id) for model_id in (self._model_to_warm if model_ids is None else model_ids)),
            capacity=sum(worker.endpoint.capacity for worker in ready),
            version=VERSION,
        )

    def answer(self, request: pb.OrchestratorRequest, *, url: str) -> pb.OrchestratorInfo:
        """Return the answer to *request*; *url* is where this gateway reaches this orchestrator."""
        gateway = "0x" + request.address.hex() if request.address else ANY_GATEWAY
        offered = [model_id for model_id in self._model_to_warm if not self._workers.is_withdrawn(model_id)]
        info = pb.OrchestratorInfo(
            transcoder=url, capabilities=self.capabilities(offered), auth_token=self._tokens.issue()
        )
        if request.HasField("capabilities"):
            demanded = demanded_models(request.capabilities)
            price = self._price_of(demanded, gateway) if set(demanded) <= set(offered) else None
            if price is not None:
                info.price_info.pricePerUnit = price.price_per_unit
                info.price_info.pixelsPerUnit = price.pixels_per_unit
            return info
        for model_id in offered:
            price = self._prices.quote(model_id, gateway)
            if price is not None:
                info.capabilities_prices.add(
                    pricePerUnit=price.price_per_unit,
                    pixelsPerUnit=price.pixels_per_unit,
                    capability=UPSCALE_CAPABILITY,
                    constraint=model_id,
                )
            info.hardware.append(self._hardware(model_id))
        return info

    def _price_of(self, model_ids: Sequence[str], gateway: str) -> Price | None:
        """Return the price of *model_ids* together, as Livepeer sums them; None if one is not sold."""
        quotes = [self._prices.quote(model_id, gateway) for model_id in model_ids]
        known = [quote.per_pixel for quote in quotes if quote is not None]
        if not known or len(known) < len(quotes):
            return None
        return price_from_fraction(sum(known, Fraction(0)))

    def _model(self, model_id: str) -> ModelOffer:
        ready = [worker for worker in self._workers.serving(model_id) if worker.can_run(model_id)]
        return ModelOffer(
            model_id,
            warm=bool(ready) and self._model_to_warm[model_id],
            capacity=sum(worker.endpoint.capacity for worker in ready),
            capacity_in_use=sum(worker.in_use for worker in ready),
            runner_version=min((worker.version for worker in ready), default=""),
        )

    def _hardware(self, model_id: str) -> pb.HardwareInformation:
        hardware = pb.HardwareInformation(pipeline=PIPELINE, model_id=model_id)
        for worker in self._workers.serving(model_id):
            for gpu in worker.gpus.values():
                # Workers number their devices from 0 each; here they stand side by side.
                _fill_gpu(hardware.gpu_info[str(len(hardware.gpu_info))], gpu)
        return hardware


def _fill_gpu(entry: pb.GPUComputeInfo, gpu: Any) -> None:
    """Copy what a worker says of one device; what is missing or of the wrong kind stays empty."""
    facts: Mapping[str, Any] = gpu if isinstance(gpu, dict) else {}
    for name in ("id", "name"):
        if isinstance(facts.get(name), str):
            setattr(entry, name, facts[name][:200])
    for name, limit in (("major", 2**32), ("minor", 2**32), ("memory_free", 2**63), ("memory_total", 2**63)):
        value = facts.get(name)
        if type(value) is int and 0 <= value < limit:
            setattr(entry, name, value)
