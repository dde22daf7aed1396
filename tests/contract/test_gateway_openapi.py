"""The checked-in description against the code, and against the routes."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from fourfold.config import GatewaySettings
from fourfold.gateway.app import create_app
from fourfold.gateway.openapi import document
from fourfold.gateway.output_form import OUTPUT_NAMES
from fourfold.protocol import wire
from fourfold.telemetry import Metrics

DOCUMENT = document()
CHECKED_IN = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_checked_in_description_is_the_codes() -> None:
    """After a change: scripts/export_openapi.py."""
    assert json.loads(CHECKED_IN.read_text(encoding="utf-8")) == DOCUMENT


def test_every_route_is_described_and_every_description_is_a_route() -> None:
    """Method by method; a slash at the end is the same place."""
    app = create_app(
        GatewaySettings(),
        board=None,  # type: ignore[arg-type]
        discovery=None,  # type: ignore[arg-type]
        dispatcher=None,  # type: ignore[arg-type]
        store=None,  # type: ignore[arg-type]
        metrics=Metrics("gateway"),
        cards={},
        spool=Path(),
    )
    while not hasattr(app, "routes"):
        app = app._app  # type: ignore[attr-defined]
    served = {(method.lower(), route.path.rstrip("/")) for route in app.routes for method in route.methods}
    described = {(method, path) for path, item in DOCUMENT["paths"].items() for method in item if method != "options"}

    assert described <= served
    assert {(method, path) for method, path in served - described if method != "head"} == set()


def _references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(_references, value.values()))
    return set().union(*map(_references, value)) if isinstance(value, list) else set()


def test_every_reference_leads_somewhere_and_everything_is_used() -> None:
    """No dangling ends in either direction."""
    components = {f"#/components/{kind}/{name}" for kind, found in DOCUMENT["components"].items() for name in found}

    assert _references(DOCUMENT) == components


def test_operations_have_unique_names() -> None:
    """Generators make functions of them."""
    names = [
        operation["operationId"]
        for item in DOCUMENT["paths"].values()
        for operation in item.values()
        if "operationId" in operation
    ]

    assert len(names) == len(set(names))
    assert "genUpscale" in names
    assert all(re.fullmatch("[a-zA-Z]+", name) for name in names)


def test_the_form_is_livepeers_and_ours() -> None:
    """What is passed on to a model, how the result is wanted, and the image, which alone is required."""
    form = DOCUMENT["components"]["schemas"]["UpscaleForm"]

    passed_on = {field.name for field in dataclasses.fields(wire.UpscaleFields)}
    wanted = {"output_format", "quality", "metadata", "scale", "width", "height", "fit"}
    assert set(form["properties"]) == {"image"} | passed_on | wanted
    assert {"prompt", "model_id", "safety_check", "seed", "num_inference_steps"} <= passed_on  # Livepeer's
    assert form["required"] == ["image"]
    assert {"image"} | wire.FIELD_NAMES | OUTPUT_NAMES >= set(form["properties"]), "described, but never read"
    assert form["properties"]["seed"]["maximum"] == wire.MAX_WIRE_SEED


def test_every_status_of_an_upscale_is_described() -> None:
    """All that the error tree can become."""
    responses = DOCUMENT["paths"]["/upscale"]["post"]["responses"]

    assert {"200", "400", "401", "413", "415", "422", "429", "500", "502", "503", "504", "507"} <= set(responses)
