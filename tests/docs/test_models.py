"""README.md and THIRD_PARTY_NOTICES.md name every model and the licence of its weights."""

from pathlib import Path

import pytest

from fourfold.engine.registry import cards

ROOT = Path(__file__).resolve().parents[2]


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """Return the further cells of the first table below *heading*, by the model in the first."""
    section = (ROOT / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"
    ]
    return {first.split("`")[1]: rest for first, *rest in cells}


def test_the_readme_says_what_each_model_is_for() -> None:
    """A row for each model that is listed, and for no other; its weights' licence is the card's."""
    table = rows("README.md", "The models, and what they are not")

    assert set(table) == set(cards())
    for model_id, about in cards().items():
        assert about.weights_licence.lower().rstrip("+") in table[model_id][-1].lower() or about.guided_by_prompt


@pytest.mark.parametrize("model_id", [model_id for model_id, about in cards().items() if about.weights])
def test_the_notices_say_where_the_weights_come_from(model_id: str) -> None:
    """File, package and licence as on the card."""
    file, package, _, licence = rows("THIRD_PARTY_NOTICES.md", "Weights")[model_id]
    about = cards()[model_id]

    assert {f"`{weights.name.rpartition('.')[0]}`" for weights in about.weights} == {file}
    assert {weights.distribution for weights in about.weights} == {package.split()[0]}
    assert licence.startswith(about.weights_licence)
