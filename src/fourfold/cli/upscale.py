"""``fourfold upscale``: pictures here, or through a gateway.

What a command needs is imported by it: this module is loaded by every role's process, too.
"""

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from fourfold import config
from fourfold.cli.app import app
from fourfold.cli.batch import Outcome, Status, is_there, run_batch, split_existing
from fourfold.cli.compare import comparing
from fourfold.cli.here import for_own_pictures, upscaling_here
from fourfold.cli.inputs import Found, Problem, find, is_picture, true_path
from fourfold.cli.interrupts import until_interrupted
from fourfold.cli.plan import Item, Naming, Plan, format_of, plan, plan_one
from fourfold.cli.progress import board
from fourfold.cli.report import Report, tell_done
from fourfold.cli.text import printable
from fourfold.cli.through import upscaling_through
from fourfold.cli.wishes import Wishes
from fourfold.compose.common import own_networks
from fourfold.config import Settings
from fourfold.engine import registry
from fourfold.engine.base import MAX_GUIDANCE_SCALE, MAX_NOISE_LEVEL, DiffusionOptions, Mode
from fourfold.errors import InvalidParameterError, NotFoundError
from fourfold.imaging import FORMATS, OutputOptions
from fourfold.imaging.options import SCALE
from fourfold.telemetry import set_up_logging

_Format = Literal["png", "jpeg", "webp", "avif", "tiff"]
_Fit = Literal["contain", "exact"]
_Metadata = Literal["default", "keep", "strip", "copyright"]
_Mode = Literal["exact", "fast"]
_DIFFUSION: Final = DiffusionOptions()


@dataclass(frozen=True, slots=True)
class _Order:
    """How the pictures of one command are to be done."""

    settings: Settings
    wishes: Wishes
    model_id: str | None
    gateway: str | None
    jobs: int
    compare: bool
    shows_progress: bool


@app.command()
def upscale(
    images: Annotated[list[str], typer.Argument(metavar="IN...", help="Pictures, folders of them, or patterns.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="The result or, for several, a folder. Default: beside IN.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model id, or photo, compact, anime; see `fourfold models`.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="What the picture shows; only guided models read it.")] = "",
    seed: Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="For the same picture again.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Of a diffusion model, as all down to --mode; default its own.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What the picture should not show.")] = "",
    guidance_scale: Annotated[
        float, typer.Option(min=0, max=MAX_GUIDANCE_SCALE, help="How much the prompt counts.")
    ] = _DIFFUSION.guidance_scale,
    noise_level: Annotated[
        int, typer.Option(min=0, max=MAX_NOISE_LEVEL, help="How noisy IN is taken to be; higher invents more.")
    ] = _DIFFUSION.noise_level,
    mode: Annotated[_Mode, typer.Option(help="exact; fast: another sampler, fewer steps.")] = "exact",
    recursive: Annotated[bool, typer.Option("-r", "--recursive", help="Also the folders in a folder.")] = False,
    output_format: Annotated[
        _Format | None, typer.Option("--format", help="Of the result. Default: as -o is called, else png.")
    ] = None,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="Of jpeg, webp and avif.")] = None,
    scale: Annotated[float | None, typer.Option(min=1, max=SCALE, help="Times the size of IN; default 4.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Of the result, at most 4 times that of IN; pixels.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="The same for its height.")] = None,
    fit: Annotated[_Fit, typer.Option(help="contain: inside width x height; exact: stretched to it.")] = "contain",
    metadata: Annotated[
        _Metadata, typer.Option(help="default: all but the place; keep: all; strip: none; copyright: only whose it is.")
    ] = "default",
    tileable: Annotated[bool, typer.Option("--tileable", help="For textures: opposite edges keep fitting.")] = False,
    suffix: Annotated[str, typer.Option(help="Added to the name of the picture.")] = "-4x",
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out what is done: goes on with a stopped batch.")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, max=64, help="Pictures at once; here, worker.capacity.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also write before and after, side by side.")] = False,
    gateway: Annotated[str | None, typer.Option(metavar="URL", help="Through this gateway instead of here.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: one object, or a line for each picture.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only say what fails.")] = False,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings file; else ./fourfold.toml.")] = None,
) -> None:
    """Make pictures four times as wide and high."""
    if "/" in suffix or os.sep in suffix:
        raise typer.BadParameter("the suffix is a part of a name; a folder is named with -o", param_hint="--suffix")
    if output == "-":
        raise typer.BadParameter("results are files; name one (./- for this very name)", param_hint="--output")
    for option, text in (("--prompt", prompt), ("--negative-prompt", negative_prompt)):
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # bytes that Python could not decode
            raise typer.BadParameter("expected UTF-8 text; look at the terminal's encoding", param_hint=option)
    file_format = _format(output_format, output)
    wanted = OutputOptions(file_format, quality, metadata, scale, width, height, fit)
    settings = for_own_pictures(config.load(config_file))
    set_up_logging("cli", level="error", style=settings.log.format)
    model_id = registry.resolve_alias(model) if model else None
    if gateway is None:
        model_id = registry.card(model_id or registry.DEFAULT_MODEL, own_networks(settings.worker)).model_id
    order = _Order(
        settings=settings,
        wishes=Wishes(
            prompt,
            seed,
            wanted,
            tileable,
            steps,
            DiffusionOptions(negative_prompt, guidance_scale, noise_level, Mode(mode)),
        ),
        model_id=model_id,
        gateway=gateway,
        jobs=jobs or (settings.worker.capacity if gateway is None else 1),
        compare=compare,
        shows_progress=not quiet,
    )
    found, problems = find(images, recursive=recursive)
    is_one = len(images) == 1 and len(found) + len(problems) == 1 and all(one.named for one in found)
    naming = Naming(suffix=suffix, extension=FORMATS[file_format].suffix, folder=Path(output) if output else None)
    todo = _plan(found, problems, naming, names_file=not _is_folder(output), is_one=is_one)
    if is_one:
        status = _do_one(todo.items[0], order, as_json=as_json, quiet=quiet, skip_existing=skip_existing)
    else:
        report = Report(as_json=as_json, quiet=quiet)
        status = _do_all(todo, problems, order, report, skip_existing=skip_existing)
    raise typer.Exit(status)


def _format(wanted: str | None, output: str | None) -> str:
    """Return the format of the results: what was wanted, else what the name of the output says.

    Raises: BadParameter if they differ, or the name is that of a format that is not written.
    """
    path = Path(output or "")
    told = None if output is None or _is_folder(output) else format_of(path)
    if wanted and told and wanted != told:
        raise typer.BadParameter(f"{output} is the name of a {told} file, not of a {wanted}", param_hint="--format")
    if output and told is None and is_picture(path) and not _is_folder(output):
        raise typer.BadParameter(f"cannot write {path.suffix}; one of {', '.join(FORMATS)}", param_hint="--output")
    return wanted or told or "png"


def _is_folder(output: str | None) -> bool:
    """Whether *output* is a folder, or is written like one."""
    return output is not None and (output.endswith(("/", os.sep)) or os.path.isdir(output))


def _plan(
    found: Sequence[Found], problems: Sequence[Problem], naming: Naming, *, names_file: bool, is_one: bool
) -> Plan:
    """Return what is to be done. Raises: NotFoundError if there is nothing; InvalidParameterError."""
    if not found and len(problems) == 1:
        raise problems[0].error
    if not found and not problems:
        raise NotFoundError("no picture there; expected image files, folders of them, or patterns")
    folder = naming.folder
    if folder is not None and is_one and names_file:
        return plan_one(found[0].path, folder, resolve=true_path)
    if folder is not None and names_file and (format_of(folder) or os.path.isfile(folder)):
        raise InvalidParameterError(f"{folder} is a file or is called like one; several pictures need a folder")
    return plan(found, naming, resolve=true_path)


def _do_one(item: Item, order: _Order, *, as_json: bool, quiet: bool, skip_existing: bool) -> int:
    """Do a picture that was named; return the exit status. Raises: why it cannot be had."""
    if skip_existing and is_there(item.target):
        facts = {"output": str(item.target), "status": "skipped"}
        if as_json or not quiet:
            typer.echo(json.dumps(facts) if as_json else f"{printable(item.target)} is there already")
        return 0
    outcomes: list[Outcome] = []
    number = asyncio.run(until_interrupted(_work([item], order, outcomes.append), _tell_stopping))
    if number is not None:
        return 128 + number
    outcome = outcomes[0]
    if outcome.error is not None:
        raise outcome.error
    if as_json:
        typer.echo(json.dumps(outcome.facts))
    else:
        tell_done(outcome.facts, quiet=quiet)
    return 0


def _do_all(todo: Plan, problems: Sequence[Problem], order: _Order, report: Report, *, skip_existing: bool) -> int:
    """Do a batch; return the exit status."""
    items, there = split_existing(todo.items) if skip_existing else (list(todo.items), [])
    for problem in problems:
        report.take(Outcome(problem.path, None, Status.FAILED, error=problem.error))
    for outcome in there:
        report.take(outcome)
    number = None
    if items:
        number = asyncio.run(until_interrupted(_work(items, order, report.take), _tell_stopping))
    return report.close(left_out=todo.left_out, planned=len(todo.items) + len(problems), signal_number=number)


async def _work(items: Sequence[Item], order: _Order, on_outcome: Callable[[Outcome], None]) -> None:
    """Upscale *items* with one worker, or one client, for all of them."""
    with board(len(items), wanted=order.shows_progress) as bars:
        async with AsyncExitStack() as stack:
            if order.gateway is None:
                assert order.model_id is not None
                way = upscaling_here(order.settings, order.wishes, model_id=order.model_id, jobs=order.jobs)
            else:
                way = upscaling_through(order.gateway, order.wishes, model_id=order.model_id)
            upscale_one = await stack.enter_async_context(way)
            compare = await stack.enter_async_context(comparing(order.settings)) if order.compare else None
            await run_batch(items, upscale_one, jobs=order.jobs, board=bars, on_outcome=on_outcome, compare=compare)


def _tell_stopping() -> None:
    typer.echo("stopping; once more ends it at once", err=True)
