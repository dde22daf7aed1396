"""Runs in the environment of PyPI livepeer-gateway: asks the orchestrator at argv[1], prints what it reads as JSON."""

import json
import sys

from livepeer_gateway import orchestrator_selector
from livepeer_gateway.capabilities import CapabilityId, build_capabilities, get_capacity_in_use, get_per_capability_map
from livepeer_gateway.errors import LivepeerGatewayError
from livepeer_gateway.orch_info import get_orch_info


def facts(info):
    """Return what this peer can read of an answer."""
    models = get_per_capability_map(info.capabilities)[int(CapabilityId.UPSCALE)].models
    return {
        "transcoder": info.transcoder,
        "price": [info.price_info.pricePerUnit, info.price_info.pixelsPerUnit],
        "prices": [[p.pricePerUnit, p.pixelsPerUnit, p.capability, p.constraint] for p in info.capabilities_prices],
        "token_bytes": len(info.auth_token.token),
        "session_id": info.auth_token.session_id,
        "expiration": info.auth_token.expiration,
        "bitstring": list(info.capabilities.bitstring),
        "mandatories": list(info.capabilities.mandatories),
        "version": info.capabilities.version,
        "models": {name: [m.warm, m.capacity, get_capacity_in_use(m), m.runnerVersion] for name, m in models.items()},
        "hardware": [[h.pipeline, h.model_id, {k: g.name for k, g in h.gpu_info.items()}] for h in info.hardware],
        "unknown_fields": len(info.SerializeToString()),
    }


def main():
    """Ask in both forms, then let the package's own selector choose."""
    url, model = sys.argv[1:]
    try:
        for_model = get_orch_info(url, capabilities=build_capabilities(CapabilityId.UPSCALE, model))
        listed = get_orch_info(url)
        chosen, info = orchestrator_selector([url], capabilities=build_capabilities(CapabilityId.UPSCALE, model)).next()
    except LivepeerGatewayError as error:
        print(json.dumps({"error": str(error)}))
        return
    print(json.dumps({"for_model": facts(for_model), "listed": facts(listed), "chosen": [chosen, info.transcoder]}))


main()
