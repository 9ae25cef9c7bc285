"""The pages of the documentation, their snippets and their links."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    """How a page is called in a test's name."""
    return page.relative_to(ROOT).as_posix()


def fences(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages, in order."""
    text = page.read_text(encoding="utf-8")
    return [match[2] for match in FENCE.finditer(text) if match[1] in languages]


def blocks(page: Path) -> list[tuple[str, str]]:
    """What a page tells one to run, in order: ("python" or "sh", the text).

    A shell block is fenced, or indented and begins with `make`.
    """
    text = page.read_text(encoding="utf-8")
    found = [(m.start(), m[1], m[2]) for m in FENCE.finditer(text) if m[1] in ("python", "sh")]
    makes = re.finditer(r"^(?: {4}make .*\n)+", text, flags=re.MULTILINE)
    found += [(m.start(), "sh", textwrap.dedent(m[0])) for m in makes]
    return [(language, code) for _, language, code in sorted(found)]


def run_python(page: Path, names: dict[str, Any]) -> None:
    """Run the Python of a page, block by block, in one namespace and the working directory.

    A failure's traceback names the page and the line.
    """
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match[1] == "python":
            line = text.count("\n", 0, match.start(2))
            exec(compile("\n" * line + match[2], str(page), "exec"), names)  # noqa: S102 our text


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `eri …` in the shell blocks of a page, without the `eri`."""
    lines = "\n".join(fences(page, "sh", "console")).replace("\\\n", " ").splitlines()
    split = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [words[1:] for words in split if words and words[0] == "eri"]


def links(page: Path) -> list[str]:
    """The targets of the links and images of a page, without those to other sites."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [target for target in LINK.findall(text) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}
