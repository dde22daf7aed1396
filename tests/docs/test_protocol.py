"""docs/protocol.md says what crosses the wires: routes, fields, headers, messages, statuses, texts."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

import fourfold
from fourfold.config import OrchestratorSettings, WorkerSettings
from fourfold.errors import ClientError, error_for, walk
from fourfold.gateway.openapi import document
from fourfold.orchestrator.app import create_app as create_orchestrator_app
from fourfold.protocol import livepeer_errors, routes, wire
from fourfold.protocol import livepeer_pb2 as pb
from fourfold.worker.app import create_app as create_worker_app

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text()
ROLES = ("client", "gateway", "orchestrator", "worker")
Rows = list[list[str]]


def table(*head: str) -> Rows:
    """Return the rows of the table whose head begins with these cells."""
    lines = iter(PAGE.splitlines())
    for line in lines:
        if cells(line)[: len(head)] == list(head):
            next(lines)
            return [cells(row) for row in iter(lambda: next(lines, ""), "") if row.startswith("|")]
    raise AssertionError(f"no table {' | '.join(head)}")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def quoted(cell: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def routes_on_page(role: str) -> set[str]:
    return {name for row in table(role, "answers with") for name in quoted(row[0])}


def served(found: Any) -> set[str]:
    """Return ``METHOD path`` of each route; HEAD comes with GET, and a slash at the end is the same place."""
    return {
        f"{method} {route.path.rstrip('/')}"
        for route in found
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }


def test_the_gateways_routes() -> None:
    """Those of its own description, which a test holds against the routes."""
    described = {
        f"{method.upper()} {path}"
        for path, item in document()["paths"].items()
        for method in item
        if method not in {"head", "options"}
    }

    assert described == routes_on_page("gateway")


def test_the_orchestrators_routes(tmp_path: Path) -> None:
    """HTTP and gRPC."""
    app = create_orchestrator_app(
        OrchestratorSettings(),
        [],
        workers=None,  # type: ignore[arg-type]
        codec=None,  # type: ignore[arg-type]
        results=None,  # type: ignore[arg-type]
        spool=tmp_path,
    )

    assert served(app._http.routes) == routes_on_page("orchestrator")
    assert set(app._grpc._methods) == {name for row in table("gRPC", "answers with") for name in quoted(row[0])}


def test_the_workers_routes() -> None:
    """But for the framework's own description of them."""
    app = create_worker_app(None, WorkerSettings())  # type: ignore[arg-type]
    its_own = {"GET /openapi.json", "GET /docs", "GET /docs/oauth2-redirect"}

    assert served(app.routes) - its_own == routes_on_page("worker")


@pytest.mark.parametrize("port", [routes.GATEWAY_PORT, routes.ORCHESTRATOR_PORT, routes.WORKER_PORT])
def test_the_ports(port: int) -> None:
    assert f"127.0.0.1:{port}" in PAGE


def test_the_fields() -> None:
    """All that the description has, in its order but for the image."""
    described = document()["components"]["schemas"]["UpscaleForm"]["properties"]

    assert set(described) == {quoted(row[0])[0] for row in table("field", "whose")}


#: Carried together, as `wire.RunFacts`.
RUN_FACTS = {"TILES_HEADER", "PADDED_HEADER", "MODE_HEADER", "WARNINGS_HEADER"}


def uses_of(constant: str, role: str) -> Iterator[str]:
    """Yield "sets" and "reads" for what the role's code does with a header."""
    name = rf"wire\.{constant}\b"
    for path in sorted((Path(fourfold.__file__).parent / role).glob("*.py")):
        if path.name == "openapi.py":  # describes, and does neither
            continue
        code = path.read_text()
        if re.search(rf"{name}(: |\] = |\.lower\(\)\.encode)", code):
            yield "sets"
        if re.search(rf"(get\(|reply, ){name}|{name} in ", code):
            yield "reads"
        if constant in RUN_FACTS and ".to_headers()" in code:
            yield "sets"
        if constant in RUN_FACTS and "read_run_facts(" in code:
            yield "reads"


def test_the_headers() -> None:
    """Every header of ours, and what each role does with it."""
    code = vars(wire)
    ours = {name: value for name, value in code.items() if name.endswith("_HEADER") and "LIVEPEER" not in value.upper()}
    expected = {
        header: [", ".join(sorted(set(uses_of(name, role)), reverse=True)) for role in ROLES]
        for name, header in ours.items()
    }

    assert expected == {quoted(row[0])[0]: row[1:5] for row in table("header", *ROLES)}


def test_livepeers_headers() -> None:
    """Those of a job."""
    listed = {quoted(row[0])[0]: row[1] for row in table("header", "value")}

    assert {wire.SEGMENT_HEADER, wire.PAYMENT_HEADER, "Authorization"} == set(listed)
    assert wire.AI_WORKER_PROTOCOL in listed["Authorization"]


def messages() -> dict[str, set[str]]:
    """Return the names of each message's fields."""
    return {name: {f.name for f in found.fields} for name, found in pb.DESCRIPTOR.message_types_by_name.items()}


def test_the_messages_fields() -> None:
    """Each field of a message that the table describes is named there, and no other."""
    values = {"0.9.1-fourfold."}
    for name, what in table("message"):
        message = quoted(name)[0]
        assert set(quoted(what)) - set(messages()) - values == messages()[message], message


def test_other_names_of_messages_exist() -> None:
    """``Message`` and ``Message.field`` anywhere on the page."""
    for name, field in re.findall(r"`([A-Z][A-Za-z]+)(?:\.(\w+))?`", PAGE):
        if name in messages() and field:
            assert field in messages()[name]
    assert {"SegData", "Payment", "GPUComputeInfo", "PingPong"} <= set(messages())


def failures() -> Iterator[tuple[str, str, str, str]]:
    """Yield each code with its row of the table of failures: before, after, text."""
    left = list(walk())
    for codes, before, after, text in table("codes", "before", "after"):
        named = quoted(codes)
        if codes == "any fault of the client":
            named = [cls.code for cls in left if issubclass(cls, ClientError)]
        elif codes == "everything else":
            named = [cls.code for cls in left]
        left = [cls for cls in left if cls.code not in named]
        yield from ((code, before, after, text) for code in named)
    assert left == []


@pytest.mark.parametrize(("code", "before", "after", "text"), list(failures()), ids=lambda value: value[:20])
def test_a_failure_in_livepeers_words(code: str, before: str, after: str, text: str) -> None:
    """Status and text, before a worker had the job and after."""
    error = error_for(code, "<m>")
    texts = quoted(text)[:1] * 2 if "after:" not in text else quoted(text)

    assert livepeer_errors.reply_to_gateway(error, by_worker=False) == (int(before), texts[0])
    assert livepeer_errors.reply_to_gateway(error, by_worker=True) == (int(after), texts[1])


def test_every_text_that_a_gateway_looks_for_is_there() -> None:
    """Also those that are messages of ours."""
    texts = {value for name, value in vars(livepeer_errors).items() if name.isupper() and isinstance(value, str)}

    assert {text for text in texts if f"`{text}`" not in PAGE} == set()


@pytest.mark.parametrize(("status", "text", "code"), table("status", "text has", "taken for"))
def test_what_an_orchestrators_answer_is_taken_for(status: str, text: str, code: str) -> None:
    number = 500 if status == "any" else int(status)
    said = quoted(text)[0] if "`" in text else "something"

    assert livepeer_errors.error_from_orchestrator(number, f"{said}: more").code == quoted(code)[0]


@pytest.mark.parametrize(("status", "text", "code"), table("status", "body has", "taken for"))
def test_what_a_runners_answer_is_taken_for(status: str, text: str, code: str) -> None:
    said = quoted(text)[0] if "`" in text else "something"
    body = json.dumps({"detail": {"msg": f"{said} or other"}}).encode()

    assert livepeer_errors.error_from_runner(int(status), body).code == quoted(code)[0]


def test_the_sdks_are_those_that_run() -> None:
    """The names of what they raise are those that their tests expect."""
    tests = (ROOT / "tests" / "acceptance" / "sdk" / "conftest.py").read_text()

    for name, _, _, raised in table("SDK"):
        assert f'Sdk("{quoted(name)[0]}"' in re.sub(r"\(\s+", "(", tests)
        assert all(f'"{error}"' in tests for error in quoted(raised) if error != "SDKError")


def test_settings_that_it_names_exist() -> None:
    """``section.name`` as in docs/configuration.md."""
    configuration = (ROOT / "docs" / "configuration.md").read_text()
    named = set(re.findall(r"`(?:gateway|orchestrator|worker)\.([a-z_]+)`", PAGE))

    assert {name for name in named if f"| `{name}` |" not in configuration} == set()
    assert named
