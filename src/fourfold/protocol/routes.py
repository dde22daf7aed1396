"""Paths and default ports, in one place so that both ends of a wire agree."""

from typing import Final

UPSCALE: Final = "/upscale"
#: The same handler: PyPI `livepeer` and npm `livepeer` replace the server's path with these.
UPSCALE_ALIASES: Final = ("/api/generate/upscale", "/api/beta/generate/upscale")
STREAM: Final = "/stream"
MODELS: Final = "/models"
HEALTH: Final = "/health"
HEALTHZ: Final = "/healthz"
LIVEZ: Final = "/livez"
READYZ: Final = "/readyz"
METRICS: Final = "/metrics"
#: At an orchestrator: those of its own worker.
WORKER_METRICS: Final = "/metrics/worker"
HARDWARE_INFO: Final = "/hardware/info"
HARDWARE_STATS: Final = "/hardware/stats"
VERSION: Final = "/version"
JOBS: Final = "/jobs"

GRPC_GET_ORCHESTRATOR: Final = "/net.Orchestrator/GetOrchestrator"
GRPC_PING: Final = "/net.Orchestrator/Ping"

GATEWAY_PORT: Final = 9935
ORCHESTRATOR_PORT: Final = 8935
WORKER_PORT: Final = 8000
