"""A codec process: ``python -m fourfold.imaging.server``. One request a line, one reply a line, until the pipe ends."""

import argparse
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyvips

from fourfold.errors import FourfoldError, OutOfMemoryError
from fourfold.imaging import compare, files, formats, measure
from fourfold.imaging.canvas import Canvas
from fourfold.imaging.options import OutputOptions
from fourfold.imaging.recipe import Recipe
from fourfold.processes.inside import Pipe, limit_memory

_Reply = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Limits:
    """The caller's limits to a picture."""

    input_pixels: int
    side_px: int


def _inspect(request: Mapping[str, Any]) -> _Reply:
    header = formats.inspect(Path(request["source"]), _Limits(**request["limits"]))
    return {name: getattr(header, name) for name in header.__slots__}


def _prepare(request: Mapping[str, Any]) -> _Reply:
    source, folder = Path(request["source"]), Path(request["folder"])
    wraps = {name: request[name] for name in ("wrap_px", "alpha_wrap_px")}
    done = files.prepare(source, folder, _Limits(**request["limits"]), **wraps)
    canvas = done.canvas.to_json() if done.canvas else None
    sizes = {"width": done.width, "height": done.height, "bits": done.bits}
    return {"path": str(done.path), "recipe": done.recipe.to_json(), "canvas": canvas, **sizes}


def _open_canvas(request: Mapping[str, Any]) -> _Reply:
    source, folder = Path(request["source"]), Path(request["folder"])
    limits = _Limits(**request["limits"])
    done = files.open_canvas(source, folder, limits, wrap_px=request["wrap_px"], max_bits=request["max_bits"])
    return {"canvas": done.canvas.to_json(), "recipe": done.recipe.to_json()}


def _encode(request: Mapping[str, Any]) -> _Reply:
    canvas, recipe = Canvas.from_json(request["canvas"]), Recipe.from_json(request["recipe"])
    return files.encode(canvas, recipe, Path(request["target"]), OutputOptions(**request["options"])).to_json()


def _finish(request: Mapping[str, Any]) -> _Reply:
    source, recipe = Path(request["source"]), Recipe.from_json(request["recipe"])
    return files.finish(source, recipe, Path(request["target"]), OutputOptions(**request["options"])).to_json()


def _verify(request: Mapping[str, Any]) -> _Reply:
    original: Path | Canvas | None = None
    if request["canvas"]:
        original = Canvas.from_json(request["canvas"])
    elif request["original"]:
        original = Path(request["original"])
    return files.verify(Path(request["source"]), request["width"], request["height"], original).to_json()


def _measure(request: Mapping[str, Any]) -> _Reply:
    return measure.measure(Canvas.from_json(request["original"]), Canvas.from_json(request["result"])).to_json()


def _compare(request: Mapping[str, Any]) -> _Reply:
    a, b, target = Path(request["a"]), Path(request["b"]), Path(request["target"])
    done = compare.compare(a, b, target, _Limits(**request["limits"]))
    return {name: getattr(done, name) for name in done.__slots__}


OPERATIONS: Mapping[str, Callable[[Mapping[str, Any]], _Reply]] = {
    "inspect": _inspect,
    "prepare": _prepare,
    "open_canvas": _open_canvas,
    "encode": _encode,
    "finish": _finish,
    "verify": _verify,
    "measure": _measure,
    "compare": _compare,
}


def main() -> None:
    """Answer requests until the parent is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory-bytes", type=int, required=True)
    limit_memory(parser.parse_args().memory_bytes)
    # A codec answers one request at a time: libvips' cache would only hold files open, its threads steal the engine's.
    pyvips.cache_set_max(0)
    pyvips.concurrency_set(1)
    pipe = Pipe()
    pipe.send({"event": "ready"})
    for request in pipe.receive():
        reply: _Reply
        try:
            reply = {"ok": OPERATIONS[request["op"]](request)}
        except FourfoldError as exc:
            reply = {"error": exc.code, "message": exc.message}
        except MemoryError:
            reply = {"error": OutOfMemoryError.code, "message": "the picture needs more memory than a codec may take"}
        except Exception as exc:  # noqa: BLE001  # the edge of the process: one picture must not end it
            traceback.print_exc()
            reply = {"error": "", "message": f"the codec failed: {type(exc).__name__}"}
        pipe.send(reply)


if __name__ == "__main__":
    main()
