"""Networks of an operator's own, loaded by spandrel from pinned files."""

import hashlib
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [networks] extra")

import torch
from safetensors.torch import load_file

from fourfold.engine import networks, registry
from fourfold.engine.base import EngineJob, JobFailed, RegionDone, UpscaleEngine
from fourfold.engine.network_probe import LiveMemory, describe
from fourfold.engine.network_torch import PaddedNetwork, import_spandrel, load_descriptor
from fourfold.engine.networks import LocalNetwork, facts, network_card
from fourfold.engine.realesrgan import RealEsrganEngine
from fourfold.engine.realesrgan_torch import load_realesrgan_engine
from fourfold.engine.settings import EngineSettings
from fourfold.engine.tiles_torch import TorchTilesEngine
from fourfold.errors import ModelUnavailableError, WorkerFailedError
from fourfold.testing.networks import save, write_compact, write_esrgan

MODEL = "local/mine"
COMPACT = "fourfold/realesr-animevideov3"
ANIME = "fourfold/realesrgan-x4plus-anime"


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> LocalNetwork:
    """The embedded animevideov3 as others distribute it."""
    return write_compact(tmp_path_factory.mktemp("compact") / "mine.safetensors")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have networks tried in this process, which has torch loaded already: another one takes seconds."""
    monkeypatch.setattr(networks, "_probe", describe)


def engine_of(network: LocalNetwork, **card: Any) -> UpscaleEngine:
    settings = EngineSettings(threads=1, networks={MODEL: network})
    if card:
        from fourfold.engine.network_torch import load_network_engine

        return load_network_engine(replace(network_card(MODEL, network), **card), settings=settings)
    return registry.load_engine(MODEL, settings=settings)


def run(engine: UpscaleEngine, image: Any) -> tuple[Any, int]:
    """Return the whole picture, and of how many tiles it was made."""
    engine.admit(EngineJob("a", image))
    made = np.zeros((image.shape[0] * 4, image.shape[1] * 4, 3), image.dtype)
    tiles = 0
    while engine.busy:
        for event in engine.step():
            if isinstance(event, JobFailed):
                raise event.error
            if isinstance(event, RegionDone):
                height, width = event.pixels.shape[:2]
                made[event.y : event.y + height, event.x : event.x + width] = event.pixels
                tiles += 1
    return made, tiles


def picture(height: int, width: int, dtype: Any = np.uint8) -> Any:
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(1)
    image = np.stack([x * 5 + y, 255 - y * 3, x * 2], axis=-1) % 256 * 0.8 + rng.integers(0, 50, (height, width, 3))
    return (image / 255 * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize(("dtype", "bound"), [(np.uint8, 1), (np.uint16, 8)])
def test_the_embedded_weights_as_a_file_give_the_embedded_models_picture(
    compact: LocalNetwork, dtype: Any, bound: int
) -> None:
    """By torch, whose own engine it equals but for rounding, and by OpenVINO."""
    image, card, settings = picture(40, 28, dtype), registry.card(COMPACT), EngineSettings(threads=1)
    ours, _ = run(engine_of(compact), image)
    by_torch, _ = run(load_realesrgan_engine(card, settings=settings), image)
    by_openvino, _ = run(RealEsrganEngine(card, settings=settings), image)

    assert np.abs(ours.astype(int) - by_torch).max() <= 1
    assert np.abs(ours.astype(int) - by_openvino).max() <= bound


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_the_large_family_is_read_too(tmp_path: Path) -> None:
    """RRDB under Real-ESRGAN's names."""
    image, settings = picture(20, 24), EngineSettings(threads=1)
    ours, _ = run(engine_of(write_esrgan(tmp_path / "anime.safetensors")), image)
    theirs, _ = run(load_realesrgan_engine(registry.card(ANIME), settings=settings), image)

    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_float16_as_on_a_gpu_looks_the_same(compact: LocalNetwork) -> None:
    """A second copy of the weights beside the first; here on the CPU, which is slow but no different."""
    engine = engine_of(compact)
    assert isinstance(engine, TorchTilesEngine)
    planes = torch.from_numpy(picture(12, 16).astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.inference_mode():
        half, whole = (engine._kernels._make_network(dtype).run(planes) for dtype in (torch.float16, torch.float32))

    assert half.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.02


def test_tiles_give_the_whole_picture(compact: LocalNetwork) -> None:
    """Within a level, at a margin that this network is known to need."""
    image = picture(90, 150)
    whole, one = run(engine_of(compact), image)
    tiled, several = run(engine_of(compact, margin_px=16, tile_pixels=96 * 96, core_px=32), image)

    assert one == 1 and several >= 2
    assert np.abs(whole.astype(int) - tiled).max() <= 1


def test_the_card_says_what_loading_showed(compact: LocalNetwork) -> None:
    """Scale, memory, margin and licence; the licence is what the operator says."""
    found = facts(compact)
    card = network_card(MODEL, replace(compact, licence="CC-BY-4.0", margin_px=16))

    assert (found.architecture, found.scale, found.channels, found.multiple_px) == ("RealESRGAN Compact", 4, (3, 3), 1)
    assert 64 * 4 * 2 <= found.bytes_per_pixel <= 64 * 4 * 12
    assert (card.model_id, card.scale, card.weights_licence, card.margin_px) == (MODEL, 4, "CC-BY-4.0", 16)
    assert network_card(MODEL, compact).weights_licence == "unknown"
    assert "RealESRGAN Compact" in card.title and not card.guided_by_prompt
    assert card.peak_bytes(64 * 64) > card.fixed_bytes > 2 * found.weight_bytes


def test_what_loading_showed_is_remembered_by_content(
    compact: LocalNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another copy of the file is not loaded again; an unreadable memory is as good as none."""
    expected = facts(compact)
    copy = replace(compact, path=Path(shutil.copy(compact.path, tmp_path / "copy.safetensors")))

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("probed again")

    with monkeypatch.context() as once:
        once.setattr(subprocess, "run", fail)
        assert facts(copy) == expected
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").write_text("no folder")
    assert facts(copy) == expected


def test_nothing_heavy_is_imported_to_offer_one(compact: LocalNetwork) -> None:
    """A role that only sells it needs no torch in its process."""
    facts(compact)
    code = (
        "import sys; from pathlib import Path; from fourfold.engine.networks import LocalNetwork, network_card; "
        f"print(network_card('local/a', LocalNetwork(Path({str(compact.path)!r}), {compact.sha256!r})).scale, "
        "sorted({'torch', 'spandrel', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)

    assert done.stdout.strip() == "4 []"


@pytest.mark.usefixtures("here")
def test_a_network_with_size_rules_takes_any_size(tmp_path: Path) -> None:
    """Padded to the least that it can and cropped; SwinIR, tiny."""
    import_spandrel()
    from spandrel.architectures.SwinIR import SwinIR

    torch.manual_seed(0)
    shape = {"img_size": 64, "window_size": 8, "depths": [2], "embed_dim": 12, "num_heads": [2], "mlp_ratio": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, about torch.meshgrid
        net = SwinIR(**shape, upscale=4, upsampler="pixelshuffledirect", resi_connection="1conv")
    network = save(tmp_path / "swin.safetensors", net.state_dict())
    engine = engine_of(network)

    assert facts(network).min_side_px == 16
    for height, width in ((1, 1), (3, 17), (30, 5)):
        made, _ = run(engine, picture(height, width))
        assert made.shape == (4 * height, 4 * width, 3)


def test_pictures_are_padded_to_what_a_network_takes(compact: LocalNetwork) -> None:
    """To a multiple and a least side, by their edges; the result is cropped to four times what came."""
    descriptor = load_descriptor(compact)
    seen: list[torch.Tensor] = []
    descriptor.model.register_forward_pre_hook(lambda _model, inputs: seen.append(inputs[0]))
    picture = torch.rand(2, 3, 5, 18)
    made = PaddedNetwork(descriptor, multiple_px=8, min_side_px=16).run(picture)

    assert [tuple(one.shape) for one in seen] == [(1, 3, 16, 24)] * 2
    assert torch.equal(seen[1][0, :, :5, :18], picture[1])
    assert torch.equal(seen[1][0, :, 5:, 0], picture[1, :, 4:5, 0].expand(3, 11))
    assert made.shape == (2, 3, 20, 72)


def compact_of(*, scale: int = 4, channels: int = 3) -> dict[str, Any]:
    """Random weights of the compact family."""
    torch.manual_seed(0)
    made = {"body.0.weight": torch.randn(8, channels, 3, 3), "body.0.bias": torch.randn(8)}
    made |= {"body.1.weight": torch.rand(8), "body.2.weight": torch.randn(8, 8, 3, 3), "body.2.bias": torch.randn(8)}
    made |= {"body.3.weight": torch.rand(8)}
    out = channels * scale**2
    return made | {"body.4.weight": torch.randn(out, 8, 3, 3), "body.4.bias": torch.randn(out)}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (compact_of(scale=2), "of scale 2; every model here makes pictures 4 times as wide"),
        (compact_of(channels=1), "for 1 to 1 channels, expected 3 to 3"),
        ({"some.weight": torch.zeros(3)}, "is no network that spandrel knows"),
        ({**compact_of(), "body.2.weight": torch.zeros(8, 7, 3, 3)}, "size mismatch for body.2.weight"),
    ],
)
def test_other_networks_are_refused_with_a_reason(tmp_path: Path, tensors: dict[str, Any], reason: str) -> None:
    """Before they are offered to anybody."""
    network = save(tmp_path / "other.safetensors", tensors)
    assert reason in (registry.why_not_loadable(MODEL, networks={MODEL: network}) or "")


@pytest.mark.usefixtures("here")
def test_only_the_pinned_safetensors_file_is_read(compact: LocalNetwork, tmp_path: Path) -> None:
    """Pickles under any name, another content, a file that is not there or damaged."""
    pickled = tmp_path / "mine.pth"
    torch.save(load_file(compact.path), pickled)
    disguised = Path(shutil.copy(pickled, tmp_path / "disguised.safetensors"))
    for path in (pickled, disguised):
        with pytest.raises(ModelUnavailableError, match="a pickle .* may run code"):
            facts(replace(compact, path=path))
    with pytest.raises(ModelUnavailableError, match=f"has sha256 {compact.sha256}, expected 0000"):
        facts(replace(compact, sha256="0" * 64))
    with pytest.raises(ModelUnavailableError, match="cannot be read: No such file"):
        facts(replace(compact, path=tmp_path / "gone.safetensors"))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(compact.path.read_bytes()[:1000])
    pinned = LocalNetwork(damaged, hashlib.sha256(damaged.read_bytes()).hexdigest())
    with pytest.raises(ModelUnavailableError, match="cannot be loaded: SafetensorError"):
        facts(pinned)


def test_a_file_that_changes_after_it_was_offered_is_not_loaded(compact: LocalNetwork, tmp_path: Path) -> None:
    """The engine looks at the content that it loads."""
    copy = replace(compact, path=Path(shutil.copy(compact.path, tmp_path / "copy.safetensors")))
    network_card(MODEL, copy)
    copy.path.write_bytes(copy.path.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(ModelUnavailableError, match="another file than the one that was pinned"):
        load_descriptor(copy)


def test_without_its_packages_the_extra_is_named(compact: LocalNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_NEEDED_PACKAGES", ("spandrel", "torch_of_tomorrow"))
    with pytest.raises(ModelUnavailableError, match=r"needs torch_of_tomorrow, .* 'fourfold\[networks\]'"):
        network_card(MODEL, compact)


def test_a_probe_tells_why_there_is_nothing_to_tell(tmp_path: Path) -> None:
    """On one line, from its own process."""
    network = save(tmp_path / "other.safetensors", {"some.weight": torch.zeros(3)})
    with pytest.raises(ModelUnavailableError, match=r"^/.*other.safetensors is no network that spandrel knows$"):
        facts(network)


def test_a_probe_that_crashes_or_hangs_is_told(
    compact: LocalNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another process, and its end is an error of that network alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    real = subprocess.run

    def crash(_command: Any, **options: Any) -> Any:
        return real([sys.executable, "-c", "import os; os.abort()"], **options)

    monkeypatch.setattr(subprocess, "run", crash)
    with pytest.raises(ModelUnavailableError, match="cannot be loaded: exit status -6"):
        facts(compact)

    def hang(command: Any, **options: Any) -> Any:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(ModelUnavailableError, match="within 300 s"):
        facts(compact)


def test_a_network_whose_code_fails_fails_the_job(compact: LocalNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the next one."""
    spandrel = import_spandrel()
    engine = engine_of(compact)

    def fail(*_: Any) -> Any:
        raise RuntimeError("shapes")

    with monkeypatch.context() as broken:
        broken.setattr(spandrel.ImageModelDescriptor, "__call__", fail)
        with pytest.raises(WorkerFailedError, match="the network failed on 8x8: RuntimeError: shapes"):
            run(engine, picture(8, 8))
    assert run(engine, picture(8, 8))[0].shape == (32, 32, 3)


def test_memory_is_what_is_alive_at_once() -> None:
    """Not what was made in all."""
    with LiveMemory() as memory:
        first = torch.zeros(1000)
        for _ in range(5):
            second = first + 1
            del second

    assert memory.peak == 2 * 4000
