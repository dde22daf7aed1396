"""Upscale through a gateway: one client, several requests at once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from fourfold.cli.batch import Upscale
from fourfold.cli.progress import OnProgress
from fourfold.cli.wishes import Wishes


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
    default = _named(Wishes())
    wanted = {name: value for name, value in _named(wishes).items() if value != default[name]}
    return {"prompt": wishes.prompt, **wanted, **({} if model_id is None else {"model_id": model_id})}


def _named(wishes: Wishes) -> dict[str, Any]:
    """Return *wishes* as the gateway's form names them, but for the prompt."""
    output = wishes.output.to_json()
    output["output_format"] = output.pop("format")
    diffusion = asdict(wishes.diffusion) | {"mode": wishes.diffusion.mode.value}
    names = ("seed", "tileable", "num_inference_steps")
    return output | diffusion | {name: getattr(wishes, name) for name in names}
