"""Write every setting to docs/configuration.md, or with ``--check`` fail if that differs from what is there."""

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fourfold.config import CONFIG_NAME, ENV_PREFIX, RUNNER_VARIABLES, Settings

TARGET = Path(__file__).parent.parent / "docs" / "configuration.md"

INTRODUCTION = f"""# Configuration

Written by `scripts/export_configuration.py` from the code; a test compares them.

A setting is looked for, later ones winning, in
1. `{CONFIG_NAME}`: the file that `--config` names, else the one in the working folder, else the user's own;
2. the environment: `[gateway] port` is `{ENV_PREFIX}GATEWAY__PORT`; lists and tables are written as TOML values;
3. flags of the command.

An unknown key, wherever it stands, is an error. `fourfold config show` prints what is in force, with `--origin` also
where it came from. The worker alone also honours the variables of Livepeer's runner containers: {{runner_variables}}.
"""


def rendered() -> str:
    """Return the file's text."""
    variables = ", ".join(f"`{name}`" for name in RUNNER_VARIABLES)
    sections = [INTRODUCTION.format(runner_variables=variables), *described("", Settings)]
    return "\n".join(sections)


def described(prefix: str, section: type[BaseModel]) -> Iterator[str]:
    """Yield a section's table, then those of its sub-sections."""
    rows, nested = [], []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            nested.append((prefix + name, kind))
        else:
            rows.append(f"| `{name}` | {shown_default(name, field)} | {field.description}{choices(kind)} |")
    title = f"[{prefix.rstrip('.')}]" if prefix else "At the top"
    purpose = (section.__doc__ or "").strip()
    yield f"## {title}\n\n{purpose}\n\n| setting | default | what it is |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    for name, kind in nested:
        yield from described(f"{name}.", kind)


def shown_default(name: str, field: FieldInfo) -> str:
    """Return the default as it would stand in the file."""
    value = field.default
    if name == "data_dir":
        return "the user's data folder"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value!r}`".replace("'", '"')


def choices(kind: object) -> str:
    """Return the values that a setting of few values may have."""
    if typing.get_origin(kind) is typing.Literal:
        return f" ({', '.join(f'`{value}`' for value in typing.get_args(kind))})"
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return "".join(choices(member) for member in typing.get_args(kind))
    return ""


def main() -> int:
    """Write or check; return the exit status."""
    text = rendered()
    if "--check" in sys.argv[1:]:
        if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
            print(f"{TARGET.name} is not what the code says; run scripts/export_configuration.py", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
