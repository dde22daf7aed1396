"""Talk to a gateway: ``Client("http://127.0.0.1:9935").upscale("photo.jpg")``, and the same with ``AsyncClient``."""

from fourfold.client.clients import AsyncClient, Client
from fourfold.client.flows import Options, Upscaled

__all__ = ["AsyncClient", "Client", "Options", "Upscaled"]
