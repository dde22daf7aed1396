"""``fourfold upscale`` and ``fourfold models``: pictures here, or through a gateway.

What a command needs is imported by it: this module is loaded by every role's process, too.
"""

import asyncio
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fourfold import config
from fourfold.cli.app import app
from fourfold.engine import registry
from fourfold.errors import InvalidParameterError, NotFoundError, StorageFullError
from fourfold.telemetry import set_up_logging

OnProgress = Callable[[int, int], None]


@app.command()
def upscale(
    image: Annotated[Path, typer.Argument(metavar="IN", help="The picture: PNG, JPEG, WebP or GIF.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The result; default: IN-4x.png.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A model id, or photo, compact, anime; see `fourfold models`.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="What the picture shows; only guided models read it.")] = "",
    seed: Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="For the same picture again.")] = None,
    gateway: Annotated[str | None, typer.Option(metavar="URL", help="Through this gateway instead of here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as one JSON object.")] = False,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings file; else ./fourfold.toml.")] = None,
) -> None:
    """Make a picture four times as wide and high."""
    if not image.is_file():
        raise NotFoundError(f"no picture at {image}; expected the path of an image file")
    target = output or image.with_name(f"{image.stem}-4x.png")
    if target.is_dir():
        raise InvalidParameterError(f"{target} is a folder; name a file with -o")
    settings = config.load(config_file).settings
    set_up_logging("cli", level="warning", style=settings.log.format)
    model_id = registry.resolve_alias(model) if model else None
    started = time.monotonic()
    with _progress(image.name) as on_progress, _whole_or_nothing(target) as unfinished:
        if gateway is None:
            work = _here(settings, image, unfinished, model_id, prompt, seed, on_progress)
        else:
            work = _through(gateway, image, unfinished, model_id, prompt, seed, on_progress)
        facts = asyncio.run(work)
    facts |= {"output": str(target), "seconds": round(time.monotonic() - started, 3)}
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        size = f"{facts['width']} x {facts['height']}" if "width" in facts else "4x"
        typer.echo(f"{target}  {size}  {facts['model_id']}  {facts['seconds']:.1f} s")


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False) -> None:
    """List the models that this installation knows."""
    from fourfold.compose.common import is_embedded

    cards = registry.cards().values()
    if as_json:
        rows = [
            {
                "model_id": card.model_id,
                "aliases": list(card.aliases),
                "title": card.title,
                "scale": card.scale,
                "guided_by_prompt": card.guided_by_prompt,
                "weights_licence": card.weights_licence,
                "installed": is_embedded(card),
            }
            for card in cards
        ]
        typer.echo(json.dumps(rows))
        return
    table = Table("model", "alias", "what it is", "weights", "here")
    for card in cards:
        here = "yes" if is_embedded(card) else "no"
        table.add_row(card.model_id, ", ".join(card.aliases), card.title, card.weights_licence, here)
    Console().print(table)


async def _here(
    settings: config.Settings,
    image: Path,
    target: Path,
    model_id: str | None,
    prompt: str,
    seed: int | None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Upscale *image* to *target* in this process's own worker; return the facts."""
    from fourfold.compose.worker import local_worker
    from fourfold.worker.orders import WorkOrder

    chosen = registry.card(model_id or registry.DEFAULT_MODEL)
    order = WorkOrder(
        job_id="cli",
        source=image,
        model_id=chosen.model_id,
        prompt=prompt,
        seed=secrets.randbits(32) if seed is None else seed,
        safety_check=False,  # nobody's service: the picture does not leave its owner
    )
    async with local_worker(settings, chosen.model_id) as worker:
        with worker.admit(order.job_id) as folder:
            done = await worker.upscale(order, folder, on_progress)
            await asyncio.to_thread(_copy, done.path, target)
    return {
        "model_id": done.model_id,
        "seed": done.seed,
        "width": done.width,
        "height": done.height,
        "stages_s": {stage: round(seconds, 3) for stage, seconds in done.stages_s.items()},
    }


async def _through(
    gateway: str,
    image: Path,
    target: Path,
    model_id: str | None,
    prompt: str,
    seed: int | None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Upscale *image* to *target* through *gateway*; return the facts."""
    from fourfold.client import AsyncClient, Options

    options = Options(prompt=prompt)
    if model_id is not None:
        options["model_id"] = model_id
    if seed is not None:
        options["seed"] = seed
    async with AsyncClient(gateway) as client:
        done = await client.upscale(image, **options)
        await client.download(done, target, on_progress=lambda got, total: on_progress(got, total or got))
    return {
        "model_id": done.model_id,
        "seed": done.seed,
        "nsfw": done.nsfw,
        "fee_wei": done.fee_wei,
        "url": done.url,
    }


def _copy(source: Path, target: Path) -> None:
    """Copy a finished picture. Raises: StorageFullError."""
    try:
        with source.open("rb") as there, target.open("wb") as here:
            while chunk := there.read(2**20):
                here.write(chunk)
    except OSError as exc:
        raise StorageFullError(f"cannot write {target}: {exc.strerror}") from exc


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    """Yield a path beside *target* that becomes it on success and is removed otherwise."""
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield unfinished
        os.replace(unfinished, target)
    except FileNotFoundError as exc:
        raise StorageFullError(f"cannot write {target}: {exc.strerror}") from exc
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def _progress(name: str) -> Iterator[OnProgress]:
    """Yield what is told of tiles done; a bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
