"""Measure how much context each network needs beyond a tile: the margins on the model cards come from here.

A strip of a photo is upscaled in one piece and again cut in the middle, with a growing margin beyond the cut; what is
kept is compared. Prints a table and a JSON line.

    .venv/bin/python bench/tile_margins.py [--photos FILE ...] [--models ID ...] [--bf16]

Without files it takes three photos of scikit-image if that is installed (pip install scikit-image), else draws one.
Some 15 minutes on two cores; it may be run beside other work, as it takes no times.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourfold.engine.inference import Inference, Tuning
from fourfold.engine.ncnn_files import read_network
from fourfold.engine.pieces import join
from fourfold.engine.realesrgan import MODEL_TO_TUNING, tuning_of
from fourfold.engine.registry import card
from fourfold.engine.tiling import Box
from fourfold.engine.weights import read_weights

STRIP_PX = (448, 192)  #: width, height
CUT_PX = 224  #: columns to the left of it are kept
MARGINS_PX = (8, 16, 32, 48, 64, 80, 96, 128)
SCIKIT_IMAGE_PHOTOS = ("astronaut", "chelsea", "coffee")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", nargs="*", type=Path, default=[])
    parser.add_argument("--models", nargs="*", default=list(MODEL_TO_TUNING))
    parser.add_argument("--margins", nargs="*", type=int, default=MARGINS_PX)
    parser.add_argument("--bf16", action="store_true", help="measure in bfloat16 instead of float32")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    strips = dict(load_strips(options.photos))
    print(f"photos: {', '.join(strips)}; strips of {STRIP_PX[0]}x{STRIP_PX[1]} px cut at {CUT_PX} px")
    print(f"{'model':34} {'margin':>7} {'max levels':>11} {'over 1 level':>13} {'over 2':>9}")
    measured = []
    for model_id in options.models:
        inference = load(model_id, is_bf16=options.bf16, threads=options.threads)
        for row in measure(inference, list(strips.values()), options.margins):
            row = {"model": model_id, **row}
            measured.append(row)
            print(
                f"{row['model']:34} {row['margin_px']:>4} px {row['max_levels']:>11} "
                f"{row['over_1']:>12.5%} {row['over_2']:>8.5%}",
                flush=True,
            )
    print(json.dumps({"bench": "tile_margins", "bf16": options.bf16, "photos": list(strips), "rows": measured}))


def load(model_id: str, *, is_bf16: bool, threads: int) -> Inference:
    network = join(read_network(*(read_weights(file) for file in card(model_id).weights)))
    tuning = Tuning(parts=tuning_of(model_id).parts, small_pixels=0)
    return Inference(network, is_bf16=is_bf16, threads=threads, tuning=tuning)


def measure(
    inference: Inference, strips: Sequence[NDArray[np.uint8]], margins_px: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Yield, for each margin, how far a cut strip is from the whole one, all photos together."""
    keep = Box(0, 0, CUT_PX, STRIP_PX[1])
    wholes = [run(inference, strip, keep) for strip in strips]
    for margin_px in margins_px:
        levels = np.concatenate(
            [
                np.abs(run(inference, strip[:, : CUT_PX + margin_px], keep).astype(int) - whole).ravel()
                for strip, whole in zip(strips, wholes, strict=True)
            ]
        )
        yield {
            "margin_px": margin_px,
            "max_levels": int(levels.max()),
            "over_1": float((levels > 1).mean()),
            "over_2": float((levels > 2).mean()),
        }


def run(inference: Inference, window: NDArray[np.uint8], keep: Box) -> NDArray[Any]:
    work = inference.run(window, keep, is_stopped=lambda: False)
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: NDArray[Any] = end.value
            return result


def load_strips(paths: Sequence[Path]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield name and middle strip of each photo."""
    if paths:
        from PIL import Image

        for path in paths:
            yield path.name, middle(np.asarray(Image.open(path).convert("RGB")))
        return
    try:
        from skimage import data
    except ImportError:
        print("scikit-image is not installed: measuring on a drawn picture", file=sys.stderr)
        yield "drawn", middle(draw(512, 512))
        return
    for name in SCIKIT_IMAGE_PHOTOS:
        yield name, middle(getattr(data, name)())


def middle(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    width, height = STRIP_PX
    top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    if top < 0 or left < 0:
        raise SystemExit(f"a photo of {photo.shape[1]}x{photo.shape[0]} px is smaller than the strip")
    return np.ascontiguousarray(photo[top : top + height, left : left + width])


def draw(height: int, width: int) -> NDArray[np.uint8]:
    """Return soft shading, overlapping discs, stripes and noise."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:height, :width]
    unit = np.stack([0.5 + 0.3 * np.sin(x / 31 + y / 53), 0.4 + 0.3 * np.cos(y / 23), 0.3 + 0.4 * x / width], axis=-1)
    for _ in range(height * width // 600):
        cx, cy, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(2, 14)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        unit[inside] = 0.5 * unit[inside] + 0.5 * rng.uniform(0, 1, 3)
    unit += 0.04 * np.sin(x * 1.7 + y * 0.9)[..., None] * (y > height / 2)[..., None]
    unit += rng.normal(0, 0.01, unit.shape)
    return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)


if __name__ == "__main__":
    main()
