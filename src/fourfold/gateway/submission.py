"""The call to one orchestrator: an image and its fields out, an image or the reason why not back.

The request is Livepeer's, with our headers besides, which a Livepeer orchestrator ignores. One of ours answers with the
encoded image itself; Livepeer's with JSON that holds a data URL or an address on the orchestrator.
Source: go-livepeer ``server/ai_process.go:submitUpscale``, ``ai/worker/multipart.go``, ``server/ai_http.go``.
"""

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import httpx2

from fourfold.errors import BadResultError, FourfoldError, UnreachableError
from fourfold.gateway.livepeer_answer import JSON_BYTES, fetch_image, read_answer
from fourfold.gateway.orchestrator_url import OrchestratorUrl, parse_orchestrator_url
from fourfold.gateway.peer_errors import error_from_peer
from fourfold.gateway.pinning import Certificate, Pins
from fourfold.gateway.selection import Offer
from fourfold.gateway.transfer import Clients, client, read_text, save, translated
from fourfold.protocol import wire
from fourfold.protocol.capabilities import demand
from fourfold.protocol.livepeer_errors import error_from_orchestrator
from fourfold.protocol.livepeer_pb2 import AuthToken, SegData
from fourfold.protocol.routes import JOBS, UPSCALE

#: keccak256 of nothing: an AI job has no segment to hash.
_EMPTY_HASH: Final = bytes.fromhex("c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470")
_PNG_HEAD: Final = b"\x89PNG\r\n\x1a\n"
_READ_BYTES: Final = 256 * 1024
_CANCEL_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """What one orchestrator is asked to do."""

    job_id: str  #: unguessable, and new for each attempt: whoever knows it may cancel it
    request_id: str
    image: Path  #: canonical, encoded
    fields: wire.UpscaleFields  #: model and seed are set


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, besides the picture itself."""

    seed: int  #: the one that ran
    nsfw: bool
    safety: str  #: clean | flagged | not-checked
    is_ours: bool  #: the answer showed our additions
    run: wire.RunFacts = field(default_factory=wire.RunFacts)  #: how it was computed, where the worker says so


class Submitter:
    """Gives work to orchestrators; :meth:`close` ends the connections that it keeps to them.

    Args: *connect_s*, patience with one that does not accept the connection; *result_bytes*, the largest result;
        *result_hosts*, other hosts than the orchestrator itself that a result may be fetched from, ``host[:port]``.
    """

    def __init__(self, *, pins: Pins, connect_s: float, result_bytes: int, result_hosts: Collection[str] = ()) -> None:
        self._pins = pins
        self._connect_s = connect_s
        self._result_bytes = result_bytes
        self._result_hosts = frozenset(result_hosts)
        self._clients = Clients(connect_s=connect_s)

    async def close(self) -> None:
        """End all connections, and what is still under way on them."""
        await self._clients.close()

    async def submit(self, order: WorkOrder, offer: Offer, auth_token: AuthToken, target: Path) -> Answer:
        """Have *order* done at *offer*; the picture lies in *target* afterwards, a PNG by its first bytes.

        Raises: what the orchestrator says went wrong; UnreachableError, BadResultError, StorageFullError.
        """
        url = parse_orchestrator_url(offer.url)
        certificate = await self._pins.get(url.host, url.port)
        try:
            answer = await self._submit(order, offer, auth_token, target, url, certificate)
        except UnreachableError as exc:
            if not isinstance(exc.__cause__, httpx2.ConnectError):
                raise
            renewed = await self._pins.renew(url.host, url.port, certificate)
            if renewed is certificate:
                raise
            answer = await self._submit(order, offer, auth_token, target, url, renewed)
        await asyncio.to_thread(_check_is_png, target, offer.url)
        return answer

    async def cancel(self, job_id: str, offer: Offer) -> None:
        """Tell an orchestrator of ours, once and without insisting, that nobody waits for *job_id* any more."""
        if not offer.is_ours:
            return
        url = parse_orchestrator_url(offer.url)
        with contextlib.suppress(FourfoldError, TimeoutError):
            async with asyncio.timeout(_CANCEL_S):
                certificate = await self._pins.get(url.host, url.port)
                with translated(offer.url):
                    async with client(certificate.context, connect_s=_CANCEL_S) as http:
                        headers = {wire.PROTOCOL_HEADER: wire.PROTOCOL_VERSION}
                        await http.delete(f"{offer.url}{JOBS}/{job_id}", headers=headers)

    async def _submit(
        self,
        order: WorkOrder,
        offer: Offer,
        auth_token: AuthToken,
        target: Path,
        url: OrchestratorUrl,
        certificate: Certificate,
    ) -> Answer:
        fields = order.fields
        if not fields.prompt and not offer.is_ours:
            fields = replace(fields, prompt=" ")  # Livepeer's runner refuses an empty one
        headers, body = _request(order, fields, auth_token)
        http = await self._clients.get(url.authority, certificate.context)
        with translated(offer.url):
            async with http.stream("POST", f"{offer.url}{UPSCALE}", headers=headers, content=body) as response:
                kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
                if response.status_code != 200:
                    raise await _refusal(response, offer.url)
                if kind == "image/png":
                    await save(response, target, peer=offer.url, max_bytes=self._result_bytes)
                    return _our_answer(response.headers, fields, offer.url)
                json_file = target.with_suffix(".json")
                limit = min(JSON_BYTES, self._result_bytes * 4 // 3 + 4096)
                await save(response, json_file, peer=offer.url, max_bytes=limit)
        answer = await read_answer(json_file, target, peer=offer.url)
        if answer.url is not None:
            await fetch_image(
                answer.url,
                target,
                orchestrator=url,
                tls=certificate.context,
                other_hosts=self._result_hosts,
                max_bytes=self._result_bytes,
                connect_s=self._connect_s,
            )
        checked = wire.SAFETY_CLEAN if fields.safety_check else wire.SAFETY_NOT_CHECKED
        return Answer(answer.seed, answer.nsfw, wire.SAFETY_FLAGGED if answer.nsfw else checked, is_ours=False)


def segment_header(model_id: str, auth_token: AuthToken) -> str:
    """Return the ``Livepeer-Segment`` value: a segment that stands for an AI job, unsigned as it is off-chain."""
    segment = SegData(
        manifestId=f"{wire.UPSCALE_CAPABILITY}_{model_id}".encode(),
        hash=_EMPTY_HASH,
        profiles=b"invalid",
        capabilities=demand(model_id),
        auth_token=auth_token,
    )
    return base64.b64encode(segment.SerializeToString()).decode("ascii")


def _request(
    order: WorkOrder, fields: wire.UpscaleFields, auth_token: AuthToken
) -> tuple[dict[str, str], AsyncIterator[bytes]]:
    """Return headers and body of the request; the parts stand in Livepeer's order."""
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode("ascii")
    tail = "".join(
        f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}'
        for name, value in fields.to_form().items()
    ).encode()
    tail += f"\r\n--{boundary}--\r\n".encode("ascii")
    headers = {
        "Content-Type": f"multipart/form-data; boundary={boundary}",
        "Content-Length": str(len(head) + order.image.stat().st_size + len(tail)),
        "Accept-Encoding": "identity",
        "Authorization": wire.AI_WORKER_PROTOCOL,
        wire.SEGMENT_HEADER: segment_header(fields.model_id, auth_token),
        wire.PAYMENT_HEADER: "",
        wire.PROTOCOL_HEADER: wire.PROTOCOL_VERSION,
        wire.JOB_HEADER: order.job_id,
        wire.REQUEST_ID_HEADER: order.request_id,
    }
    return headers, _body(head, order.image, tail)


async def _body(head: bytes, image: Path, tail: bytes) -> AsyncIterator[bytes]:
    yield head
    with image.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _READ_BYTES):
            yield chunk
    yield tail


async def _refusal(response: httpx2.Response, peer: str) -> FourfoldError:
    """Return the error that an answer other than 200 stands for."""
    text = await read_text(response, peer=peer)
    code = response.headers.get(wire.ERROR_HEADER)
    if code:
        return error_from_peer(code, text)
    return error_from_orchestrator(response.status_code, text)


def _our_answer(headers: httpx2.Headers, fields: wire.UpscaleFields, peer: str) -> Answer:
    """Read the headers of a raw image; what one of them leaves out is what was asked for."""
    seed = wire.read_seed(headers.get(wire.SEED_HEADER, str(fields.seed or 0)))
    if seed is None:
        raise BadResultError(f"{peer} names a seed that is none")
    ran = headers.get(wire.MODEL_HEADER, fields.model_id)
    if ran != fields.model_id:
        raise BadResultError(f"{peer} ran {ran[:200]!r} where {fields.model_id!r} was asked for")
    nsfw = headers.get(wire.NSFW_HEADER, "false").lower() == "true"
    safety = headers.get(wire.SAFETY_HEADER, "")
    if safety not in {wire.SAFETY_CLEAN, wire.SAFETY_FLAGGED, wire.SAFETY_NOT_CHECKED}:
        safety = wire.SAFETY_FLAGGED if nsfw else wire.SAFETY_NOT_CHECKED
    return Answer(seed, nsfw, safety, is_ours=True, run=wire.read_run_facts(headers))


def _check_is_png(path: Path, peer: str) -> None:
    """Raise BadResultError unless the file starts like a PNG."""
    with path.open("rb") as file:
        if file.read(len(_PNG_HEAD)) != _PNG_HEAD:
            raise BadResultError(f"{peer} delivered something that is no PNG")
