"""docs/errors.md says of every code what the code does."""

import re
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from fourfold.cli import status
from fourfold.errors import FourfoldError, Retry, walk
from fourfold.gateway.peer_errors import error_from_peer
from fourfold.imaging.formats import READABLE
from fourfold.processes.role import CONFIG_EXIT_STATUS
from fourfold.testing import fake_orchestrator
from fourfold.testing.fake_orchestrator import FakeModel, FakeOrchestrator
from fourfold.testing.pictures import png
from fourfold.testing.running_gateway import running_gateway

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text()
MODEL = "fourfold/realesrgan-x4plus"
TRIED_AGAIN = {Retry.SAME: "same", Retry.OTHER: "other", Retry.NEVER: "no"}


class Row(NamedTuple):
    """One line of the table."""

    code: str
    status: int
    fault: str
    tried_again: str
    retryable: str
    what: str
    advice: str


def rows() -> list[Row]:
    """Return the lines of the first table."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")
    ]
    return [Row(c[0].strip("`"), int(c[1]), *c[2:]) for c in cells if len(c) == len(Row._fields)]


CODE_TO_ROW = {row.code: row for row in rows()}
#: Codes that an orchestrator of ours can name to a gateway, which takes them for what they are.
FROM_PEERS = [code for code in CODE_TO_ROW if error_from_peer(code, "m").code == code and code != "worker_failed"]


def test_every_code_has_one_row_and_every_row_a_code() -> None:
    """In the order of the tree."""
    assert [row.code for row in rows()] == [cls.code for cls in walk()]


@pytest.mark.parametrize("cls", list(walk()), ids=lambda cls: cls.code)
def test_a_row_is_true(cls: type[FourfoldError]) -> None:
    """Status, fault and retry are those of the class; nobody is left without advice."""
    row = CODE_TO_ROW[cls.code]

    expected = (cls.http_status, cls.blame.name.lower(), TRIED_AGAIN[cls.retry], "yes" if cls("m").retryable else "no")
    assert expected == (row.status, row.fault, row.tried_again, row.retryable)
    assert row.what.endswith(".") and row.advice.endswith(".")


@pytest.mark.parametrize("code", FROM_PEERS)
async def test_a_gateway_does_what_the_row_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """The first of two orchestrators fails with the code; who is asked next, who is blamed, what the client hears."""
    row = CODE_TO_ROW[code]
    scripted = dict(fake_orchestrator.OUR_ERRORS) | {"scripted": (row.status, code)}
    monkeypatch.setattr(fake_orchestrator, "OUR_ERRORS", scripted)
    first = FakeOrchestrator(tmp_path / "1", models=[FakeModel(MODEL, price=(1, 1))])
    second = FakeOrchestrator(tmp_path / "2", models=[FakeModel(MODEL, price=(2, 1))])
    first.script.append("scripted")  # type: ignore[arg-type]
    async with first, second, running_gateway(tmp_path / "g", [first.url, second.url]) as gateway:
        await gateway.discovery.first_round.wait()
        async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as client:
            reply = await client.post("/upscale", files={"image": ("a.png", png())}, data={"model_id": MODEL})
        offers = {offer.orchestrator: offer for offer in gateway.discovery.offers()}

    expected_jobs = {"no": (1, 0), "other": (1, 1), "same": (2, 0)}[row.tried_again]
    assert expected_jobs == (len(first.jobs), len(second.jobs))
    assert (row.fault == "worker") == offers[first.url].is_penalised
    if row.tried_again == "no":
        error = reply.json()["error"]
        assert (row.status, code, row.retryable == "yes") == (reply.status_code, error["code"], error["retryable"])
        assert reply.headers["X-Request-ID"] == error["request_id"]
    else:
        assert reply.status_code == 200, reply.text


def test_the_formats_that_it_advises_are_read() -> None:
    """PNG, JPEG and so on, in any order; formats of extras may be left out."""
    advised = re.findall(r"[A-Z]\w+", CODE_TO_ROW["unsupported_format"].advice.removeprefix("Send "))

    assert [name for name in advised if name not in READABLE] == []
    assert "PNG" in advised


def test_exit_statuses() -> None:
    """The numbers at a prompt are the constants."""
    section = PAGE.partition("## At a prompt")[2]
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}

    assert {0, 2, status.FAILED_STATUS, status.INPUT_STATUS, CONFIG_EXIT_STATUS, status.INTERRUPTED_STATUS} == listed
