"""The README's table of methods, written from the method files: ``python scripts/methods_table.py --write``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repro.registry import Entry

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"


def table(entries: Iterable[Entry]) -> str:
    """A Markdown table, one line per usable method in the order given; "settings for": baselines with recipes."""
    lines = ["| method | family | paper | settings for |", "| --- | --- | --- | --- |"]
    for entry in entries:
        if entry.cls is not None:
            paper = entry.cls.paper
            title = f"[{cell(paper.title)}]({paper.url})" if paper.url else cell(paper.title)
            grounds = dict.fromkeys(key.split("/")[0] for key in entry.cls.recipes)
            settings = ", ".join(f"`{name}`" for name in grounds) or "-"
            venue = f" ({cell(paper.venue)})" if paper.venue else ""
            lines.append(f"| `{entry.name}` | {entry.family.replace('_', ' ')} | {title}{venue} | {settings} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text that cannot end a table's cell."""
    return " ".join(text.replace("|", "\\|").split())


def filled(readme: str, content: str) -> str:
    """``readme`` with ``content`` between the two markers; UserError where a marker is missing."""
    from baselines.errors import UserError

    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise UserError(f"The README needs the line '{BEGIN}' once, and '{END}' once behind it.")
    head, rest = readme.split(BEGIN)
    return f"{head}{BEGIN}\n{content}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str] | None = None) -> int:
    """Print the table, or write it into the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write it into the README instead of printing it")
    options = parser.parse_args(arguments)
    from repro import registry

    content = table(registry.entries().values())
    if options.write:
        README.write_text(filled(README.read_text(), content))
    else:
        print(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
