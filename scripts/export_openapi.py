"""Write the gateway's description to docs/openapi.json, or with ``--check`` fail if it differs from what is there."""

import json
import sys
from pathlib import Path

from fourfold.gateway.openapi import document

TARGET = Path(__file__).parent.parent / "docs" / "openapi.json"


def rendered() -> str:
    """Return the file's text."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write or check; return the exit status."""
    text = rendered()
    if "--check" in sys.argv[1:]:
        if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
            print(f"{TARGET.name} is not what the code describes; run scripts/export_openapi.py", file=sys.stderr)
            return 1
        return 0
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
