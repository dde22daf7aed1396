"""The folder of results: unguessable names, bounded time and room."""

import os
import shutil
from pathlib import Path

import pytest

from fourfold.errors import StorageFullError
from fourfold.results import FilesystemStore


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_store(tmp_path: Path, clock: Clock, *, ttl_s: float = 60, max_bytes: int = 100) -> FilesystemStore:
    return FilesystemStore(tmp_path / "results", ttl_s=ttl_s, max_bytes=max_bytes, wall_clock=clock)


def picture(tmp_path: Path, content: bytes = b"png") -> Path:
    path = tmp_path / "source"
    path.write_bytes(content)
    return path


async def test_a_stored_result_is_found_under_its_key(tmp_path: Path, clock: Clock) -> None:
    """What went in comes out, and the source has moved."""
    store = make_store(tmp_path, clock)
    source = picture(tmp_path)

    group, name = (await store.put(source)).split("/")
    found = store.find(group, name)

    assert found is not None and found.path.read_bytes() == b"png"
    assert not source.exists()
    assert (len(group), len(name)) == (32, 36)


async def test_two_results_never_share_a_name(tmp_path: Path, clock: Clock) -> None:
    """Both halves of every key are fresh."""
    store = make_store(tmp_path, clock)

    keys = [(await store.put(picture(tmp_path))).split("/") for _ in range(5)]

    assert len({half for key in keys for half in key}) == 10


@pytest.mark.parametrize("group", ["..", "", "a" * 32, "A" * 32, "../" + "0" * 32, "0" * 31])
async def test_names_of_another_shape_are_not_there(tmp_path: Path, clock: Clock, group: str) -> None:
    """Path tricks find nothing."""
    store = make_store(tmp_path, clock)
    (tmp_path / "results" / "x.png").write_bytes(b"secret")

    assert store.find(group, "x.png") is None
    assert store.find(group, "../x.png") is None


async def test_a_result_expires(tmp_path: Path, clock: Clock) -> None:
    """After its time it is not found, and a sweep removes its folder."""
    store = make_store(tmp_path, clock, ttl_s=60)
    group, name = (await store.put(picture(tmp_path))).split("/")
    clock.now += 61

    assert store.find(group, name) is None
    assert await store.sweep() == 1
    assert os.listdir(tmp_path / "results") == []


async def test_a_clock_that_steps_back_makes_nothing_live_longer(tmp_path: Path, clock: Clock) -> None:
    """The time left is never more than the whole time."""
    store = make_store(tmp_path, clock, ttl_s=60)
    group, name = (await store.put(picture(tmp_path))).split("/")
    clock.now -= 10_000

    found = store.find(group, name)

    assert found is not None and found.expires_in_s == 60


async def test_the_oldest_leave_when_room_is_short(tmp_path: Path, clock: Clock) -> None:
    """The store never holds more than its limit."""
    store = make_store(tmp_path, clock, max_bytes=100)
    keys = []
    for _ in range(3):
        keys.append((await store.put(picture(tmp_path, b"x" * 40))).split("/"))
        clock.now += 1

    assert [store.find(*key) is not None for key in keys] == [False, True, True]


async def test_a_result_larger_than_the_store_is_refused(tmp_path: Path, clock: Clock) -> None:
    """Nothing else is thrown out for it."""
    store = make_store(tmp_path, clock, max_bytes=100)
    kept = (await store.put(picture(tmp_path))).split("/")

    with pytest.raises(StorageFullError):
        await store.put(picture(tmp_path, b"x" * 101))

    assert store.find(*kept) is not None


async def test_a_folder_that_was_removed_is_made_again(tmp_path: Path, clock: Clock) -> None:
    """Somebody tidied up while the gateway ran: what was there is gone, and the next one is kept."""
    store = make_store(tmp_path, clock)
    shutil.rmtree(tmp_path / "results")

    group, name = (await store.put(picture(tmp_path))).split("/")

    assert (found := store.find(group, name)) is not None and found.path.read_bytes() == b"png"


async def test_a_store_that_cannot_be_written_is_507(tmp_path: Path, clock: Clock) -> None:
    """A file where the folder was: the store's failure, told with its own code."""
    store = make_store(tmp_path, clock)
    os.rmdir(tmp_path / "results")
    (tmp_path / "results").write_text("")

    with pytest.raises(StorageFullError):
        await store.put(picture(tmp_path))


async def test_a_new_process_serves_what_the_last_one_stored(tmp_path: Path, clock: Clock) -> None:
    """Results survive a restart; folders that a crash left empty do not."""
    group, name = (await make_store(tmp_path, clock).put(picture(tmp_path))).split("/")
    (tmp_path / "results" / ("0" * 32)).mkdir()
    (tmp_path / "results" / "note.txt").write_text("not ours")

    again = make_store(tmp_path, clock)

    assert again.find(group, name) is not None
    assert sorted(os.listdir(tmp_path / "results")) == sorted([group, "note.txt"])
