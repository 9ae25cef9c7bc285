"""How the site reads a docstring's `Example:` section.

Griffe knows `Examples:` and shows any other heading as a note. Code without `>>>`, which is not run
as a doctest, is shown as a code block.
"""

from __future__ import annotations

import ast
import re
import textwrap
from typing import Any

import griffe

SECTION = re.compile(r"^Examples?:\n((?:(?:[ ]{4}.*)?\n)*(?:[ ]{4}.*)?)", flags=re.MULTILINE)


class ExampleSections(griffe.Extension):
    """Rewrites the example of every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = with_examples(obj.docstring.value)


def with_examples(text: str) -> str:
    """A docstring whose example is a section that Griffe knows."""

    def section(match: re.Match[str]) -> str:
        body = match[1].rstrip()
        if is_python(textwrap.dedent(body)):
            body = textwrap.indent(f"```python\n{textwrap.dedent(body)}\n```", " " * 4)
        return f"Examples:\n{body}\n"

    return SECTION.sub(section, text)


def is_python(text: str) -> bool:
    """Whether a text is code and nothing else: no doctest, no prose."""
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True
