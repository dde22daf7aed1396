"""A few hundred of the damaged files that ``scripts/fuzz_imaging.py`` makes by the thousand."""

import importlib.util
from pathlib import Path


async def test_damaged_files_are_taken_or_refused(tmp_path: Path) -> None:
    """No other error, no hang, bounded memory, and the process lives on. The full run is in docs/benchmarks.md."""
    script = Path(__file__).parents[3] / "scripts" / "fuzz_imaging.py"
    spec = importlib.util.spec_from_file_location("fuzz_imaging", script)
    assert spec and spec.loader
    fuzzer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzzer)

    facts = await fuzzer.fuzz(300, 7, tmp_path)

    assert sum(facts["outcomes"].values()) == 300
    assert not [name for name in facts["outcomes"] if "died" in name]
    assert facts["slowest_s"] < 10
    assert facts["peak_mb"] < 400
