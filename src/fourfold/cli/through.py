"""Upscale through a gateway: one client, several requests at once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from fourfold.cli.batch import Upscale
from fourfold.cli.progress import OnProgress
from fourfold.cli.wishes import Wishes
from fourfold.imaging import OutputOptions


@asynccontextmanager
async def upscaling_through(gateway: str, wishes: Wishes, *, model_id: str | None) -> AsyncIterator[Upscale]:
    """Yield what upscales through the gateway at *gateway*; the gateway chooses where *model_id* is None."""
    from fourfold.client import AsyncClient, Options

    options = cast(Options, fields_of(wishes, model_id))
    async with AsyncClient(gateway) as client:

        async def upscale(source: Path, target: Path, on_progress: OnProgress) -> dict[str, Any]:
            done = await client.upscale(source, **options)
            await client.download(done, target, on_progress=lambda got, total: on_progress(got, total or got))
            facts = {
                "model_id": done.model_id,
                "seed": done.seed,
                "nsfw": done.nsfw,
                "fee_wei": done.fee_wei,
                "url": done.url,
            }
            if done.fidelity is None:
                return facts
            output = done.fidelity.get("output", {})
            size = {side: output[side] for side in ("width", "height") if side in output}
            return {**facts, **size, "fidelity": done.fidelity}

        yield upscale


def fields_of(wishes: Wishes, model_id: str | None) -> dict[str, Any]:
    """Return the form fields that ask for *wishes*; no defaults of ours: other gateways know none of them."""
    output = wishes.output.to_json()
    output["output_format"] = output.pop("format")
    default = OutputOptions().to_json()
    default["output_format"] = default.pop("format")
    wanted = {name: value for name, value in output.items() if value != default[name]}
    named = {"model_id": model_id, "seed": wishes.seed, "tileable": wishes.tileable or None}
    return {"prompt": wishes.prompt, **wanted, **{name: value for name, value in named.items() if value is not None}}
