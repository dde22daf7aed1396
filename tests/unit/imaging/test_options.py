"""What a client may ask of a result, and the exact size that it gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.errors import InvalidParameterError
from fourfold.imaging import OutputOptions

SIDES = st.integers(1, 20_000)


@given(width=SIDES, height=SIDES)
def test_without_a_wish_every_side_is_four_times_as_long(width: int, height: int) -> None:
    """Exactly, for every size."""
    assert OutputOptions().output_size(width, height) == (4 * width, 4 * height)


@given(width=SIDES, height=SIDES, scale=st.floats(1, 4))
def test_a_scale_is_kept_to_within_half_a_pixel(width: int, height: int, scale: float) -> None:
    """Rounded, never cut off."""
    made = OutputOptions(scale=scale).output_size(width, height)

    assert all(abs(out - side * scale) <= 0.5 for out, side in zip(made, (width, height), strict=True))


@given(width=SIDES, height=SIDES, box=st.tuples(st.integers(1, 4000), st.integers(1, 4000)))
def test_contain_touches_the_box_and_keeps_the_aspect(width: int, height: int, box: tuple[int, int]) -> None:
    """One side as asked for, the other within it, the aspect kept to within half a pixel."""
    options = OutputOptions(width=box[0], height=box[1])
    if box[0] > 4 * width or box[1] > 4 * height:
        return
    made = options.output_size(width, height)

    assert made[0] <= box[0] and made[1] <= box[1] and (made[0] == box[0] or made[1] == box[1])
    factor = min(box[0] / width, box[1] / height)
    assert all(abs(out - max(1, side * factor)) <= 0.5 + 1e-9 for out, side in zip(made, (width, height), strict=True))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"width": 100}, (100, 75)),
        ({"height": 30}, (40, 30)),
        ({"width": 50, "height": 50, "fit": "exact"}, (50, 50)),
        ({"scale": 2}, (80, 60)),
        ({"scale": 1}, (40, 30)),
    ],
)
def test_one_side_gives_the_other(options: dict[str, object], size: tuple[int, int]) -> None:
    """Of a picture of 40 x 30."""
    assert OutputOptions(**options).output_size(40, 30) == size


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"format": "gif"}, "output_format must be one of png, jpeg"),
        ({"metadata": "all"}, "metadata must be one of"),
        ({"fit": "cover"}, "fit must be one of"),
        ({"quality": 90}, "png is lossless"),
        ({"format": "jpeg", "quality": 0}, "quality must be from 1 to 100"),
        ({"format": "jpeg", "quality": 101}, "quality must be from 1 to 100"),
        ({"scale": 0.5}, "scale must be from 1 to 4"),
        ({"scale": 4.1}, "scale must be from 1 to 4"),
        ({"scale": float("nan")}, "scale must be from 1 to 4"),
        ({"width": 0}, "width must be at least 1"),
        ({"scale": 2, "width": 10}, "twice"),
        ({"fit": "exact", "width": 10}, "both width and height"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(values: dict[str, object], match: str) -> None:
    """400 before anything is done."""
    with pytest.raises(InvalidParameterError, match=match):
        OutputOptions(**values)


@pytest.mark.parametrize(
    ("options", "size", "match"),
    [
        ({"width": 161}, (40, 30), "at most 160 x 120"),
        ({"width": 10, "height": 121, "fit": "exact"}, (40, 30), "at most 160 x 120"),
        ({"format": "webp"}, (4096, 10), "16383 pixels on a side"),
        ({"format": "webp"}, (4000, 4000), "128000000 pixels"),
        ({"format": "jpeg"}, (16_376, 10), "65500 pixels on a side"),
        ({"format": "avif"}, (4000, 2000), "64000000 pixels"),
    ],
)
def test_a_size_beyond_the_picture_or_the_format_is_refused(options, size: tuple[int, int], match: str) -> None:
    """More pixels than the model makes would be invented; more than the format holds, lost."""
    with pytest.raises(InvalidParameterError, match=match):
        OutputOptions(**options).output_size(*size)


def test_options_cross_a_pipe() -> None:
    """Their JSON says all of it."""
    options = OutputOptions("jpeg", 80, "copyright", None, 30, 20, "exact")

    assert OutputOptions.from_json(options.to_json()) == options
