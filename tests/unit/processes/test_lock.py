"""One process at a time in a data folder."""

import os
import sys
import threading
from pathlib import Path

import pytest

from fourfold.errors import ConfigError
from fourfold.processes.lock import FolderLock


def test_a_second_holder_is_refused_with_the_first_one_named(tmp_path: Path) -> None:
    """The message says who holds it and what to do."""
    with FolderLock(tmp_path / "data"), pytest.raises(ConfigError, match=f"process {os.getpid()}.*--data-dir"):
        FolderLock(tmp_path / "data").__enter__()


def test_the_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    """Leaving lets go, and a stale file does not hold."""
    with FolderLock(tmp_path):
        pass

    with FolderLock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/full")
def test_a_full_disk_keeps_no_role_from_starting(tmp_path: Path) -> None:
    """A role that is started again there is needed, to say what is wrong."""
    (tmp_path / "lock").symlink_to("/dev/full")

    with FolderLock(tmp_path), pytest.raises(ConfigError, match="in use"):
        FolderLock(tmp_path).__enter__()


def test_a_folder_that_cannot_be_made_is_a_settings_error(tmp_path: Path) -> None:
    """Named, with the system's reason."""
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="file"):
        FolderLock(tmp_path / "file" / "data").__enter__()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_a_new_data_folder_is_its_owners_alone(tmp_path: Path) -> None:
    """Who may list a results folder needs to guess no name."""
    with FolderLock(tmp_path / "data" / "gateway"):
        assert (tmp_path / "data" / "gateway").stat().st_mode & 0o077 == 0


def test_a_holder_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    """A role that is started again must not fail because the orphan of its predecessor has a moment to go."""
    held = FolderLock(tmp_path).__enter__()
    timer = threading.Timer(0.2, held.__exit__, (None, None, None))
    timer.start()

    with FolderLock(tmp_path, patience_s=30):
        pass
    timer.join()
