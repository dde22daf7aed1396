"""What is asked of a gateway."""

from fourfold.cli.through import fields_of
from fourfold.cli.wishes import Wishes
from fourfold.engine.base import DiffusionOptions, Mode
from fourfold.imaging import OutputOptions


def test_defaults_are_not_sent() -> None:
    """A Livepeer gateway knows none of our fields."""
    assert fields_of(Wishes(), None) == {"prompt": ""}


def test_what_is_wanted_is_sent_under_its_name() -> None:
    """As the gateway's form has it."""
    wanted = OutputOptions("jpeg", 80, "keep", width=10, height=20, fit="exact")

    diffusion = DiffusionOptions("dark", 3.5, 200, Mode.FAST)

    assert fields_of(Wishes("a cat", 0, wanted, True, 12, diffusion), "m") == {
        "prompt": "a cat",
        "seed": 0,
        "model_id": "m",
        "output_format": "jpeg",
        "quality": 80,
        "metadata": "keep",
        "width": 10,
        "height": 20,
        "fit": "exact",
        "tileable": True,
        "num_inference_steps": 12,
        "negative_prompt": "dark",
        "guidance_scale": 3.5,
        "noise_level": 200,
        "mode": "fast",
    }
