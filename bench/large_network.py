"""An 8192 x 8192 picture through gateway, orchestrator and worker: time, and the peak memory of each process.

``python bench/large_network.py [side]``. Needs about 25 bytes of disk for each pixel of the result.
"""

import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import psutil
import pyvips

from fourfold.testing.processes import running

MODEL = "fourfold/lanczos"
_LIMITS = "input_pixels = 100000000\nupload_bytes = 1000000000\n"


def _large() -> object:
    spec = importlib.util.spec_from_file_location("large", Path(__file__).with_name("large.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configure(folder: Path) -> Path:
    """Write settings with room for such a picture."""
    (folder / "aiModels.json").write_text(json.dumps([{"pipeline": "upscale", "model_id": MODEL, "warm": True}]))
    config = folder / "fourfold.toml"
    config.write_text(
        f"[gateway]\njob_deadline_s = 3000\n[gateway.limits]\n{_LIMITS}"
        f"[orchestrator]\nmodels = '{folder / 'aiModels.json'}'\nworker_timeout_s = 3000\n"
        f"[orchestrator.limits]\n{_LIMITS}"
        f"[worker]\njob_timeout_s = 3000\nmemory_bytes = {2**29}\n[worker.limits]\n{_LIMITS}"
    )
    return config


def main() -> None:
    """Print a table and a JSON line."""
    large = _large()
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source = folder / "in.png"
        large.make(side, source)  # type: ignore[attr-defined]
        pyvips.Image.new_from_file(str(source)).jpegsave(str(folder / "in.jpg"), Q=85)
        arguments = ("--config", str(configure(folder)), "--data-dir", str(folder / "data"))
        with running("up", *arguments, "--port", "0", "--orchestrator-port", "0") as network:
            url = network.ready["gateway"]
            started = time.monotonic()
            with (folder / "in.jpg").open("rb") as image:
                answer = httpx2.post(
                    url + "/upscale", files={"image": ("a", image)}, data={"safety_check": "false"}, timeout=3000
                )
            seconds = time.monotonic() - started
            assert answer.status_code == 200, answer.text
            peaks: dict[str, int] = {}
            for process in [psutil.Process(network.process.pid), *network.descendants()]:
                words = [word for word in process.cmdline()[1:] if "fourfold" in word or word.isalpha()]
                name = " ".join(words[:3]) or "up"
                peaks[name] = max(peaks.get(name, 0), large.peak_bytes(process.pid))  # type: ignore[attr-defined]
    for name, peak in peaks.items():
        print(f"{name:40s} {peak / 2**20:8.0f} MiB")
    facts = {"side": side, "seconds": round(seconds, 1), "fidelity": answer.json()["fidelity"], "peak_bytes": peaks}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
