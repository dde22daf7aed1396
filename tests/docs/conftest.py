"""One network for all pages."""

from collections.abc import Iterator

import pytest

from fourfold.testing.processes import running


@pytest.fixture(scope="session")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run ``fourfold up`` on free ports."""
    data_dir = tmp_path_factory.mktemp("up")
    with running("up", "--port", "0", "--orchestrator-port", "0", "--data-dir", str(data_dir)) as command:
        yield command.ready["gateway"]
