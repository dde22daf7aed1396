"""``fourfold models``: what this installation knows."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from fourfold.cli.app import app
from fourfold.engine import registry


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False) -> None:
    """List the models that this installation knows."""
    from fourfold import config
    from fourfold.compose.common import loadable_cards

    loadable = loadable_cards(config.load().settings.worker.model_paths)
    cards = registry.cards().values()
    if as_json:
        rows = [
            {
                "model_id": card.model_id,
                "aliases": list(card.aliases),
                "title": card.title,
                "scale": card.scale,
                "guided_by_prompt": card.guided_by_prompt,
                "weights_licence": card.weights_licence,
                "installed": card.model_id in loadable,
            }
            for card in cards
        ]
        typer.echo(json.dumps(rows))
        return
    table = Table(Column("model", no_wrap=True), "alias", "here", "what it is; licence of its weights", box=None)
    for card in cards:
        here = "yes" if card.model_id in loadable else "no"
        table.add_row(card.model_id, ", ".join(card.aliases), here, f"{card.title}; {card.weights_licence}")
    Console().print(table)
