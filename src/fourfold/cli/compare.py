"""``fourfold compare``: two pictures side by side, and how alike they are."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from fourfold import config
from fourfold.cli.app import app
from fourfold.cli.batch import Compare, whole_or_nothing
from fourfold.cli.inputs import true_path
from fourfold.cli.text import printable
from fourfold.config import LimitSettings, Settings
from fourfold.errors import InvalidParameterError, NotFoundError
from fourfold.imaging import Codec
from fourfold.telemetry import set_up_logging

#: These are the user's own files: a result is sixteen times what the limits let in.
_LIMITS = LimitSettings(input_pixels=100_000_000, side_px=2**17)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A picture.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one; the smaller is enlarged to the larger.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write both, labelled, to this PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings file; else ./fourfold.toml.")] = None,
) -> None:
    """Say how alike two pictures are, and put them side by side."""
    settings = config.load(config_file).settings
    set_up_logging("cli", level="error", style=settings.log.format)
    for path in (first, second):
        if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
            raise NotFoundError(f"no picture at {path}; expected the path of an image file")
        if output is not None and true_path(output) == true_path(path):
            raise InvalidParameterError(f"the comparison would overwrite {path}; choose another -o")
    facts = asyncio.run(_compare(settings, first, second, output))
    typer.echo(json.dumps(facts) if as_json else _sentences(facts))


@asynccontextmanager
async def comparing(settings: Settings) -> AsyncIterator[Compare]:
    """Yield what puts a picture and its result side by side; its process ends with the block."""
    async with Codec(timeout_s=settings.worker.job_timeout_s) as codec:

        async def put_side_by_side(before: Path, after: Path, target: Path) -> object:
            return await codec.compare(before, after, target, _LIMITS)

        yield put_side_by_side


async def _compare(settings: Settings, first: Path, second: Path, output: Path | None) -> dict[str, Any]:
    """Return the facts that are told of the two pictures."""
    with ExitStack() as files:
        if output is None:
            target = Path(files.enter_context(TemporaryDirectory(prefix="fourfold-")), "pair.png")
        else:
            target = files.enter_context(whole_or_nothing(output))
        async with Codec(timeout_s=settings.worker.job_timeout_s) as codec:
            a, b = await codec.inspect(first, _LIMITS), await codec.inspect(second, _LIMITS)
            alike = await codec.compare(first, second, target, _LIMITS)
    enlarged = (
        None if (a.width, a.height) == (b.width, b.height) else "A" if a.width * a.height < b.width * b.height else "B"
    )
    return {
        "a": {"path": str(first), "width": a.width, "height": a.height},
        "b": {"path": str(second), "width": b.width, "height": b.height},
        "width": alike.width,
        "height": alike.height,
        "enlarged": enlarged,
        "psnr_db": round(alike.psnr_db, 2),
        "ssim": round(alike.ssim, 4),
        "output": None if output is None else str(output),
    }


def _sentences(facts: dict[str, Any]) -> str:
    lines = []
    if facts["enlarged"]:
        small = facts[facts["enlarged"].lower()]
        size = f"{facts['width']} x {facts['height']}"
        lines.append(
            f"{facts['enlarged']} was enlarged from {small['width']} x {small['height']} to {size}, to compare"
        )
    lines.append(f"PSNR {facts['psnr_db']:.2f} dB  SSIM {facts['ssim']:.4f}")
    if facts["output"]:
        lines.append(printable(facts["output"]))
    return "\n".join(lines)
