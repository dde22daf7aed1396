"""Which models there are."""

import subprocess
import sys

import pytest

from fourfold.engine.registry import DEFAULT_MODEL, card, cards, load_engine, resolve_alias
from fourfold.engine.settings import EngineSettings
from fourfold.errors import ModelUnavailableError, UnknownModelError

EMBEDDED = [
    "fourfold/realesrgan-x4plus",
    "fourfold/realsr-df2k",
    "fourfold/realesr-animevideov3",
    "fourfold/realesrgan-x4plus-anime",
    "fourfold/lanczos",
]


def test_listing_models_imports_no_runtime() -> None:
    """The roles that only sell or route work never load one."""
    code = (
        "import sys, fourfold.engine.registry as r; r.cards(); "
        "print(sorted({'openvino', 'torch', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_embedded_models_are_known_the_default_first() -> None:
    """The ids are the interface."""
    assert [*EMBEDDED, "stabilityai/stable-diffusion-x4-upscaler"] == list(cards())
    assert next(iter(cards())) == DEFAULT_MODEL


@pytest.mark.parametrize("model_id", EMBEDDED)
def test_a_card_says_what_planning_needs(model_id: str) -> None:
    """Numbers that a plan can be made of, and where the weights come from."""
    about = card(model_id)

    assert model_id == about.model_id
    assert about.scale == 4
    assert not about.guided_by_prompt
    assert 0 < about.core_px**2 <= about.tile_pixels
    assert about.peak_bytes(about.tile_pixels) > about.fixed_bytes
    assert about.tile_pixels_within(about.peak_bytes(12_345)) == 12_345
    assert about.tile_pixels_within(0) == 0
    assert bool(about.weights) == (about.weights_licence != "none")


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("photo", "fourfold/realesrgan-x4plus"),
        ("compact", "fourfold/realesr-animevideov3"),
        ("anime", "fourfold/realesrgan-x4plus-anime"),
        ("lanczos", "fourfold/lanczos"),
        ("fourfold/realsr-df2k", "fourfold/realsr-df2k"),
        ("nobody/knows", "nobody/knows"),
    ],
)
def test_short_names_stand_for_ids(name: str, model_id: str) -> None:
    """Whatever is no short name is an id, known or not."""
    assert model_id == resolve_alias(name)


def test_short_names_are_unique() -> None:
    """Each means one model."""
    names = [alias for about in cards().values() for alias in about.aliases]

    assert len(set(names)) == len(names)


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    """The caller sees what it could have asked for."""
    with pytest.raises(UnknownModelError, match="no model 'nobody/knows'; known: fourfold/realesrgan-x4plus, "):
        card("nobody/knows")
    with pytest.raises(UnknownModelError):
        load_engine("nobody/knows", settings=EngineSettings(threads=1))


def test_stable_diffusion_is_known_but_not_here() -> None:
    """Known, so that a gateway can route to those who have it; loading says what is missing: packages, or files."""
    assert card("stabilityai/stable-diffusion-x4-upscaler").guided_by_prompt
    with pytest.raises(ModelUnavailableError, match=r"pip install|not on this machine"):
        load_engine("stabilityai/stable-diffusion-x4-upscaler", settings=EngineSettings(threads=1))


def test_an_engine_is_loaded_by_its_id() -> None:
    """With its card."""
    engine = load_engine("fourfold/lanczos", settings=EngineSettings(threads=1))

    assert card("fourfold/lanczos") is engine.card
    engine.close()
