"""Clients that mean harm, against a real network: only refusals and closed connections, memory flat, others served.

The sizes suit CI; ``HOSTILE_TESTS=full`` in the environment takes those of the numbers in
``docs/benchmarks.md``: 10,000 connections, 2,000 uploads. Loopback only, and every test has an end.
"""

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from fourfold.testing.pictures import png
from fourfold.testing.processes import Running
from fourfold.testing.running_network import FAST_MODEL, post, result_size, running_network, wait_until

pytestmark = pytest.mark.slow

IS_FULL = os.environ.get("HOSTILE_TESTS", "") == "full"
CONNECTIONS = 10_000 if IS_FULL else 1_500
UPLOADS = 2_000 if IS_FULL else 200
FORM = b"POST /upscale HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
#: Growth of one role that is no leak: buffers of the allocator, a thousand open connections.
FLAT_BYTES = 120 * 2**20


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("hostile")
    with running_network(folder, "[gateway]\nbody_timeout_s = 5\n", models=(FAST_MODEL,)) as command:
        for _ in range(5):  # warm: what is loaded once is no growth
            assert post(command.ready["gateway"], png()).status_code == 200
        yield command


@pytest.fixture
def gateway(network: Running) -> Iterator[str]:
    """The gateway's address. Afterwards it and the other roles are the same processes, no larger, and still serve."""
    before = memory(network)
    yield network.ready["gateway"]
    assert post(network.ready["gateway"], png()).status_code == 200
    after = memory(network)
    assert set(before) <= set(after), "a role was replaced"
    grown = {pid: after[pid] - size for pid, size in before.items() if after[pid] - size > FLAT_BYTES}
    assert grown == {}


def memory(network: Running) -> dict[int, int]:
    """Return the resident bytes of each role by its process id."""
    return {process.pid: process.memory_info().rss for process in network.descendants("--supervised")}


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    return parts.hostname, parts.port


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address(url))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(url: str, raw: bytes, *, timeout_s: float = 30.0) -> int:
    """Send *raw*; return the status of the answer, 0 where the connection was closed without one."""
    async with asyncio.timeout(timeout_s), connected(url) as (reader, writer):
        try:
            writer.write(raw)
            await writer.drain()
            line = await reader.readline()
        except ConnectionError:
            return 0
        return int(line.split()[1]) if line else 0


async def is_served(url: str) -> float:
    """Return how many seconds somebody else's picture takes."""
    began = time.monotonic()
    reply = await asyncio.to_thread(post, url, png())
    assert await asyncio.to_thread(result_size, reply) == (48, 36)
    return time.monotonic() - began


async def test_headers_that_never_end(gateway: str) -> None:
    """Slowloris: closed when their time is up; a thousand of them keep nobody out."""
    async with asyncio.timeout(60):
        opened = [await asyncio.open_connection(*address(gateway)) for _ in range(300)]
        for _, writer in opened:
            writer.write(b"POST /upscale HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        began = time.monotonic()
        assert await is_served(gateway) < 10
        alive = list(opened)
        while alive:
            for _, writer in alive:
                writer.write(b"a")
            await asyncio.sleep(1)
            alive = [(r, w) for r, w in alive if not r.at_eof() and not w.transport.is_closing()]
        assert time.monotonic() - began < 45
        for _, writer in opened:
            writer.transport.abort()


async def test_bodies_that_never_end(gateway: str) -> None:
    """A byte a second is no upload: told so, and the places they held are free."""
    head = FORM + b"Content-Length: 100000\r\n\r\n"
    head += b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n'

    async def one() -> int:
        async with asyncio.timeout(90), connected(gateway) as (reader, writer):
            writer.write(head)
            answer = asyncio.create_task(reader.readline())
            try:
                while not answer.done():
                    writer.write(b"x")
                    await asyncio.wait({answer}, timeout=1)
                line = await answer
            except ConnectionError:
                return 0
            return int(line.split()[1]) if line else 0

    slow = [asyncio.create_task(one()) for _ in range(40)]
    await asyncio.sleep(1)
    assert await is_served(gateway) < 10
    assert {status for status in await asyncio.gather(*slow)} <= {0, 408, 422, 429}


async def test_thousands_of_open_connections(network: Running, gateway: str) -> None:
    """They take neither every descriptor nor anybody's turn: the longest idle leave."""
    opened: list[socket.socket] = []
    try:
        for _ in range(CONNECTIONS):
            sock = socket.socket()
            sock.settimeout(10)
            sock.connect(address(gateway))
            opened.append(sock)
            if len(opened) % 500 == 0:
                assert await is_served(gateway) < 10
        role = network.descendants("gateway", "--supervised")[0]
        wait_until(lambda: role.num_fds() < 1_300, 10)
    finally:
        for sock in opened:
            sock.close()
    assert await is_served(gateway) < 10
    wait_until(lambda: role.num_fds() < 100, 30)


async def test_thousands_of_handshakes_that_never_end(network: Running, gateway: str) -> None:
    """The same at an orchestrator's TLS port."""
    opened: list[socket.socket] = []
    try:
        for _ in range(CONNECTIONS // 2):
            sock = socket.socket()
            sock.settimeout(10)
            sock.connect(address(network.ready["orchestrator"]))
            opened.append(sock)
        assert await is_served(gateway) < 10
        role = network.descendants("orchestrator", "--supervised")[0]
        wait_until(lambda: role.num_fds() < 1_300, 10)
    finally:
        for sock in opened:
            sock.close()


async def test_requests_that_are_none(gateway: str) -> None:
    """Huge headers, a thousand of them, nonsense, two lengths: refused or closed."""
    post_line = b"POST /upscale HTTP/1.1\r\nHost: x\r\n"
    requests = [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Huge: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
        + b"".join(b"X-%d: %s\r\n" % (i, b"v" * 500) for i in range(1000))
        + b"\r\n",
        b"GET /" + b"a" * 500_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),
        os.urandom(5000) + b"\r\n\r\n",
        post_line + b"Content-Length: 5\r\nContent-Length: 50\r\n\r\nhello",
        post_line + b"Content-Length: -1\r\n\r\n",
        post_line + b"Content-Length: 9999999999999999999999\r\n\r\n",
        post_line + b"Transfer-Encoding: chunked\r\n\r\nZZZZ\r\n",
        post_line + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
    ]
    for number, raw in enumerate(requests):
        status = await ask(gateway, raw)
        assert status == 0 or 400 <= status < 500, (number, status)


def form(*parts: bytes, boundary: bytes = b"b") -> bytes:
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    head = b"POST /upscale HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=" + boundary
    return head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def test_forms_that_are_none(gateway: str) -> None:
    """Nested, a thousand fields, endless part headers, no boundary, the wrong one: all refused."""
    image = b'Content-Disposition: form-data; name="image"\r\n\r\n'
    nested = b"Content-Type: multipart/mixed; boundary=c\r\n"
    nested += b'Content-Disposition: form-data; name="image"\r\n\r\n--c\r\n\r\n\r\n--c--'
    fields = [b'Content-Disposition: form-data; name="f%d"\r\n\r\nv' % i for i in range(1000)]
    requests = {
        "nested": form(nested),
        "fields": form(*fields, image + png()),
        "part headers": form(b"X-A: " + b"a" * 100_000 + b"\r\n" + image + png()),
        "long field": form(b'Content-Disposition: form-data; name="prompt"\r\n\r\n' + b"a" * 1_000_000, image + png()),
        "no image": form(b'Content-Disposition: form-data; name="prompt"\r\n\r\na'),
        "cut": form(image + png())[:-20] + b"x" * 20,
        "empty": FORM + b"Content-Length: 0\r\n\r\n",
        "no boundary": FORM.replace(b"; boundary=b", b"") + b"Content-Length: 2\r\n\r\nhi",
        "json": b"POST /upscale HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    }
    for name, raw in requests.items():
        assert 400 <= await ask(gateway, raw) < 500, name


async def test_a_body_in_endless_chunks(gateway: str) -> None:
    """Beyond the limit it is refused, however small its pieces are and whatever its length was said to be."""
    head = FORM + b"Transfer-Encoding: chunked\r\n\r\n"
    begin = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    async with asyncio.timeout(60), connected(gateway) as (reader, writer):
        writer.write(head + b"%x\r\n%s\r\n" % (len(begin), begin))
        answer = asyncio.create_task(reader.readline())
        sent = 0
        try:
            while not answer.done() and sent < 300 * 2**20:
                writer.write(chunk)
                await writer.drain()
                sent += 0x10000
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        line = await answer
    assert line.split()[1] == b"413"
    assert sent < 100 * 2**20


@pytest.mark.parametrize(
    "path",
    [
        "/stream/../../../etc/passwd",
        "/stream/..%2f..%2f..%2fetc/passwd",
        "/stream/%2e%2e/%2e%2e/lock",
        "/stream/" + "0" * 32 + "/..%2f..%2flock",
        "/stream//etc/passwd",
        "/stream/" + "0" * 32 + "/%00.png",
        "/stream/" + "a" * 5000 + "/b.png",
        "/stream/..\\..\\lock/x.png",
        "/stream/~root/x.png",
    ],
)
async def test_paths_that_lead_out(gateway: str, path: str) -> None:
    """There is nothing but results, and those only under their whole name."""
    raw = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    assert 400 <= await ask(gateway, raw) < 500


@pytest.mark.parametrize(
    "host", ["evil.example\\@x", 'x"><script>', "a b", "x:99999", "[::1", "x/../y", "", "x" * 3000]
)
def test_host_headers_that_are_none(gateway: str, host: str) -> None:
    """What stands in a result's URL is a host or it is our own address: no markup, no path, no credentials."""
    body = {"image": ("p.png", png())}
    data = {"model_id": FAST_MODEL, "prompt": "", "safety_check": "false"}
    try:
        reply = httpx2.post(f"{gateway}/upscale", data=data, files=body, headers={"Host": host}, timeout=30)
    except (httpx2.TransportError, httpx2.LocalProtocolError):
        return  # not even sent, or closed
    if reply.status_code == 200:
        url = urlsplit(reply.json()["images"][0]["url"])
        assert url.path.startswith("/stream/") and not set('"<> \\@') & set(url.geturl()), url.geturl()
    else:
        assert 400 <= reply.status_code < 500


def damage(picture: bytes, dice: random.Random) -> bytes:
    """Return *picture* cut, with changed bytes, with a part twice, or nothing but noise."""
    data = bytearray(picture)
    kind = dice.randrange(5)
    if kind == 0:
        return bytes(data[: dice.randrange(len(data))])
    if kind == 1:
        return dice.randbytes(dice.randrange(5000))
    if kind == 2:
        start = dice.randrange(len(data))
        return bytes(data[:start] + data[: dice.randrange(len(data))] + data[start:])
    for _ in range(dice.choice((1, 3, 30))):
        data[dice.randrange(8 if kind == 3 else 0, len(data))] = dice.randrange(256)
    return bytes(data)


async def test_damaged_uploads(gateway: str, sources: list[bytes]) -> None:
    """Each is a picture after all, or refused as the client's fault; none ends a role or blames an orchestrator."""
    dice = random.Random(7)
    uploads = [damage(dice.choice(sources), dice) for _ in range(UPLOADS)]
    slots = asyncio.Semaphore(4)

    async def one(client: httpx2.AsyncClient, upload: bytes) -> tuple[int, str]:
        async with slots:
            data = {"model_id": FAST_MODEL, "prompt": "", "safety_check": "false"}
            reply = await client.post(f"{gateway}/upscale", data=data, files={"image": ("p", upload)}, timeout=120)
            return reply.status_code, "" if reply.status_code == 200 else reply.json()["error"]["code"]

    async with httpx2.AsyncClient() as client:
        outcomes = await asyncio.gather(*(one(client, upload) for upload in uploads))

    unexpected = [outcome for outcome in outcomes if outcome[0] != 200 and not 400 <= outcome[0] < 500]
    assert unexpected == []
    assert sum(status != 200 for status, _ in outcomes) > UPLOADS // 2
    assert await is_served(gateway) < 10


@pytest.fixture
def sources() -> list[bytes]:
    """Small pictures in every format that Pillow writes and we read."""
    import io

    from PIL import Image

    base = Image.open(io.BytesIO(png(40, 30)))
    found = [png(40, 30)]
    for kind in ("jpeg", "gif", "webp", "bmp", "tiff"):
        stream = io.BytesIO()
        base.save(stream, kind)
        found.append(stream.getvalue())
    return found


async def test_readers_that_read_nothing(gateway: str, tmp_path: Path) -> None:
    """A result asked for and never taken: the connection is cut, others have theirs."""
    reply = await asyncio.to_thread(post, gateway, png(500, 500))
    path = urlsplit(reply.json()["images"][0]["url"]).path
    socks = []
    for _ in range(20):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.connect(address(gateway))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        socks.append(sock)
    assert await is_served(gateway) < 10
    for sock in socks:
        sock.close()
