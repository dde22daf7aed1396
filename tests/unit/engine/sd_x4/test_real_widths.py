"""At the real model's widths, in float16 and without computing: work, memory, number types. No GPU is needed."""

from types import SimpleNamespace

import pytest
import torch

from fourfold.engine import registry
from fourfold.engine.sd_x4 import holding_graphs, measured
from fourfold.engine.sd_x4_decode import DecodeLimits
from fourfold.engine.sd_x4_kernels import MOST_RECORDED_PIXELS
from fourfold.engine.sd_x4_plan import plan_canvas
from fourfold.testing.sd_x4_counts import TOKENS, Inputs, LiveBytes, MetaModel, peak_bytes, teraflops

CARD = measured(
    registry.card("stabilityai/stable-diffusion-x4-upscaler"),
    SimpleNamespace(weight_bytes=1_693_000_000, dtype=torch.float16),  # type: ignore[arg-type]
)


@pytest.fixture(scope="module")
def model() -> MetaModel:
    return MetaModel.make()


def test_live_bytes_count_memory_once_and_only_while_it_is_held() -> None:
    """A view is no new memory, neither of what was made below nor of what was there before."""
    before = torch.empty(1000, device="meta")
    with LiveBytes() as memory:
        kept = before.view(10, 100) + 1
        dropped = kept * 2
        del dropped
        kept.t()

    assert (memory.live, memory.peak) == (4000, 8000)


def test_a_step_computes_what_stock_computes_but_for_the_shared_and_the_kept(model: MetaModel) -> None:
    """Stock's FLOPs less the part before the text, once, the text's keys and values, and the timestep's embedding."""
    unet, side = model.unet, 128
    embedding = torch.empty((1, 1024), device="meta").half()

    def shared() -> None:
        sample = unet.conv_in(torch.empty((1, 7, side, side), device="meta").half())
        for resnet in unet.down_blocks[0].resnets:
            sample = resnet(sample, embedding)
        for downsampler in unet.down_blocks[0].downsamplers:
            sample = downsampler(sample)
        unet.down_blocks[1].resnets[0](sample, embedding)

    ours, stock = teraflops(model.step(side, side)), teraflops(model.stock_step(side, side))
    widths = [keys.shape[1] * keys.shape[3] for keys, _ in model.text(2).values()]
    kept = sum(2 * 2 * TOKENS * 2 * 1024 * width for width in widths) + 2 * 2 * (256 * 1024 + 1024 * 1024)

    assert stock == pytest.approx(2.2628, rel=1e-4)  # counted before any of this was written
    assert ours == pytest.approx(stock - teraflops(shared) - kept / 1e12, rel=1e-9)
    assert 1 - ours / stock == pytest.approx(0.054, abs=0.001)


@pytest.mark.parametrize(("side", "rows", "ways"), [(128, 8, 2), (1024, 1, 2), (256, 2, 1)])
def test_a_step_holds_what_the_card_says(model: MetaModel, side: int, rows: int, ways: int) -> None:
    peak = peak_bytes(model.step(side, side, rows=rows, ways=ways))

    assert peak <= rows * side * side * CARD.bytes_per_input_pixel
    if ways == 2:
        assert peak >= 0.8 * rows * side * side * CARD.bytes_per_input_pixel


@pytest.mark.parametrize("side", [128, 256])
def test_a_decode_holds_what_the_card_says(model: MetaModel, side: int) -> None:
    assert peak_bytes(model.decode(side, side)) <= CARD.running_bytes + side * side * CARD.bytes_per_input_pixel


@pytest.mark.slow
def test_a_decode_of_512_px_holds_no_more_than_4_13_gib(model: MetaModel) -> None:
    assert peak_bytes(model.decode(512, 512)) <= 4.13 * 2**30


@pytest.mark.parametrize(("side", "tera"), [(128, 3.09), (512, 181.5)])
def test_a_decode_computes_what_stock_computes(model: MetaModel, side: int, tera: float) -> None:
    """In one go: strips see their neighbours' rows again."""
    in_one_go = DecodeLimits(strip_pixels=2**40, attention_queries=2**40)

    assert teraflops(model.decode(side, side, limits=in_one_go)) == pytest.approx(tera, rel=0.002)


def test_all_of_a_step_is_float16_on_one_device_by_weights_laid_out_channels_last(model: MetaModel) -> None:
    """A GPU takes a convolution's layout from its weights; a float32 map would cost twice its time and memory."""
    with torch.inference_mode(), Inputs() as inputs:
        answers = model.step(128, 128)()
    weights = [weight for weight in model.unet.parameters() if weight.dim() == 4]

    assert len(inputs.convolved) == 66
    assert {sample.dtype for sample in [*inputs.convolved, answers]} == {torch.float16}
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert inputs.elsewhere == []


def test_graphs_are_in_the_cards_memory() -> None:
    """A step of the largest recorded shape is held beside the job; 1024 x 1024 still fits 24 GiB whole."""
    with_graphs = holding_graphs(CARD, 23 * 2**30)

    assert with_graphs is not None
    assert with_graphs.fixed_bytes - CARD.fixed_bytes == MOST_RECORDED_PIXELS * CARD.bytes_per_input_pixel
    assert len(plan_canvas(with_graphs, 1024, 1024, budget_bytes=23 * 2**30).tiles) == 1
    assert len(plan_canvas(with_graphs, 2048, 2048, budget_bytes=23 * 2**30).tiles) > 1
    assert holding_graphs(CARD, None) == with_graphs


@pytest.mark.parametrize(("gigabytes", "has_graphs"), [(7, False), (11, True)])
def test_a_small_memory_is_for_pictures_not_for_graphs(gigabytes: int, has_graphs: bool) -> None:
    """A card of 8 GiB has none, one of 12 GiB has."""
    assert (holding_graphs(CARD, gigabytes * 2**30) is not None) is has_graphs
