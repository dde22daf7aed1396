"""Results under their address."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest

from fourfold.testing.fake_orchestrator import FakeOrchestrator
from fourfold.testing.pictures import png
from fourfold.testing.running_gateway import running_gateway


class WallClock:
    """Seconds since the epoch, when told."""

    def __init__(self) -> None:
        self.now_s = 2_000_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def wall_clock() -> WallClock:
    return WallClock()


Fetch = Callable[..., object]


@pytest.fixture
async def result(tmp_path: Path, wall_clock: WallClock) -> AsyncIterator[tuple[httpx2.AsyncClient, str, bytes]]:
    """A client, the address of a result, and its bytes."""
    async with (
        FakeOrchestrator(tmp_path / "o") as orchestrator,
        running_gateway(tmp_path / "g", [orchestrator.url], wall_clock=wall_clock, result_ttl_s=600.0) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        answer = await client.post("/upscale", files={"image": ("a", png(40, 30))})
        url = answer.json()["images"][0]["url"]
        content = (await client.get(url)).content
        yield client, url, content


async def test_a_whole_result(result: tuple[httpx2.AsyncClient, str, bytes], wall_clock: WallClock) -> None:
    """PNG, with everything a browser or a cache needs, and no longer than it is kept."""
    client, url, content = result
    wall_clock.now_s += 100.5

    answer = await client.get(url)

    assert answer.status_code == 200
    assert answer.content == content
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Content-Length"] == str(len(content))
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Content-Length" in answer.headers["Access-Control-Expose-Headers"]
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Cache-Control"] == "private, max-age=499, immutable"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_head(result: tuple[httpx2.AsyncClient, str, bytes]) -> None:
    """The same headers and no body; a Range has no meaning there."""
    client, url, _ = result

    whole, head = await client.get(url), await client.head(url, headers={"Range": "bytes=0-0"})

    assert head.status_code == 200
    assert head.content == b""
    for name in ("Content-Length", "ETag", "Content-Type", "Cache-Control"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize("form", ['{}, "other"', "W/{}", "*", '"other", {}'])
async def test_a_client_that_has_it_already(result: tuple[httpx2.AsyncClient, str, bytes], form: str) -> None:
    """304 without a body."""
    client, url, _ = result
    etag = (await client.head(url)).headers["ETag"]

    answer = await client.get(url, headers={"If-None-Match": form.format(etag)})

    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["ETag"] == etag
    assert "max-age" in answer.headers["Cache-Control"]


async def test_a_client_that_has_another(result: tuple[httpx2.AsyncClient, str, bytes]) -> None:
    """An ETag of something else changes nothing."""
    client, url, _ = result

    assert (await client.get(url, headers={"If-None-Match": '"other"'})).status_code == 200


@pytest.mark.parametrize(
    ("asked", "start", "end"), [("bytes=0-0", 0, 1), ("bytes=10-", 10, None), ("bytes=-7", -7, None)]
)
async def test_a_part(result: tuple[httpx2.AsyncClient, str, bytes], asked: str, start: int, end: int | None) -> None:
    """206 with exactly the bytes."""
    client, url, content = result

    answer = await client.get(url, headers={"Range": asked})

    first = start % len(content)
    last = len(content) - 1 if end is None else end - 1
    assert answer.status_code == 206
    assert answer.content == content[start:end]
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(content)}"
    assert answer.headers["Content-Length"] == str(len(answer.content))


@pytest.mark.parametrize("asked", ["bytes=5-2", "lines=1-2", "bytes=0-1,4-5", "bytes=x"])
async def test_a_range_that_is_none(result: tuple[httpx2.AsyncClient, str, bytes], asked: str) -> None:
    """The whole file, as the standard has it."""
    client, url, content = result

    answer = await client.get(url, headers={"Range": asked})

    assert (answer.status_code, answer.content) == (200, content)


async def test_a_range_beyond_the_end(result: tuple[httpx2.AsyncClient, str, bytes]) -> None:
    """416, as JSON, with the size."""
    client, url, content = result

    answer = await client.get(url, headers={"Range": f"bytes={len(content)}-"})

    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(content)}"
    assert answer.json()["error"]["code"] == "range_not_satisfiable"


@pytest.mark.parametrize(("same", "status"), [(True, 206), (False, 200)])
async def test_a_part_of_the_same_file_only(
    result: tuple[httpx2.AsyncClient, str, bytes], same: bool, status: int
) -> None:
    """If-Range protects a download that goes on."""
    client, url, _ = result
    etag = (await client.head(url)).headers["ETag"] if same else '"other"'

    answer = await client.get(url, headers={"Range": "bytes=0-3", "If-Range": etag})

    assert answer.status_code == status


async def test_a_result_expires(result: tuple[httpx2.AsyncClient, str, bytes], wall_clock: WallClock) -> None:
    """After its time it is gone, and the answer is JSON."""
    client, url, _ = result
    wall_clock.now_s += 600.0

    for answer in (await client.get(url), await client.get(url, headers={"If-None-Match": "*"})):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"
        assert answer.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize(
    "path",
    [
        f"/stream/{'a' * 32}/{'b' * 32}.png",
        "/stream/x/y.png",
        "/stream/%2e%2e/%2e%2e/etc/passwd",
        "/stream/..%2f..%2f/passwd.png",
        "/stream/",
        "/stream",
        f"/stream/{'A' * 32}/{'b' * 32}.png",
        f"/stream/{'a' * 32}/{'b' * 32}.png%00",
        f"/stream/{'a' * 32}/{'b' * 32}.jpg",
    ],
)
async def test_addresses_where_nothing_is(result: tuple[httpx2.AsyncClient, str, bytes], path: str) -> None:
    """404 as JSON, for guesses and for tricks with the path alike."""
    client, _, _ = result

    answer = await client.get(path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_a_result_can_only_be_read(result: tuple[httpx2.AsyncClient, str, bytes]) -> None:
    """405 with Allow."""
    client, url, _ = result

    answer = await client.delete(url)

    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD"}
