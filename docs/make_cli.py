"""Write docs/cli.md: what `--help` prints, command by command. `make docs` runs it; a test tells when it is due."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from lorchestra.cli.main import COMMANDS, main

TARGET = Path(__file__).with_name("cli.md")
_HEAD = "# The command line\n\nGenerated from `lorchestra COMMAND --help` by `make docs`; do not edit.\n"


def reference() -> str:
    """The whole page."""
    pages = [("lorchestra", ["--help"]), *((f"lorchestra {name}", [name, "--help"]) for name in COMMANDS)]
    return _HEAD + "".join(f"\n## {title}\n\n```text\n{_help(arguments)}\n```\n" for title, arguments in pages)


def _help(arguments: list[str]) -> str:
    out = io.StringIO()
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ.update(COLUMNS="100", NO_COLOR="1")
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main(arguments)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    print(TARGET)
