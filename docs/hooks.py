"""What the site needs beyond its pages: files of the repository, and the options of `eri`.

A page links to a file outside `docs/` by its relative path, which is what GitHub shows. In the site
such a file is copied to `repository/` and the link leads there, so nothing is stored twice. The
line `[[eri COMMAND]]` becomes a table of that command's options, read from the real parser.
"""

from __future__ import annotations

import argparse
import html
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from eri_runtime.commands.main import make_parser

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()(\.\./[^)\s#]+)")  # ](../path of a Markdown link or image
COMMAND = re.compile(r"^\[\[eri ([\w-]+)\]\]$", flags=re.MULTILINE)
SHOWN_AS_IS = {".png", ".svg", ".json"}  # by a browser; other files are shown as text


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of `docs/` to copies in the site, and write the tables of options."""

    def link(match: re.Match[str]) -> str:
        folder = posixpath.dirname(page.file.src_uri)
        path = posixpath.normpath(posixpath.join("docs", folder, match[2]))
        if path.startswith("docs/"):
            return match[0]
        return match[1] + posixpath.relpath(_published(path, config, files), folder or ".")

    markdown = LINK.sub(link, markdown)
    return COMMAND.sub(lambda match: options_table(match[1]), markdown)


def _published(path: str, config: MkDocsConfig, files: Files) -> str:
    """The place in the site of a file of the repository; raises `PluginError` if there is none."""
    source = ROOT / path
    if not source.is_file():
        raise PluginError(f"{path}: linked, but no such file")
    uri = f"repository/{path}" + ("" if source.suffix in SHOWN_AS_IS else ".txt")
    if files.get_file_from_path(uri) is None:
        if source.suffix in SHOWN_AS_IS:
            files.append(File.generated(config, uri, abs_src_path=str(source)))
        else:
            files.append(File.generated(config, uri, content=source.read_bytes()))
    return uri


def options_table(command: str) -> str:
    """Usage, summary and every option of a subcommand of `eri`, as Markdown."""
    parser = subcommands()[command]
    lines = [str(parser.description), "", "```text", parser.format_usage().strip(), "```", ""]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if not actions:
            continue
        title = (group.title or "options").capitalize()
        head = "argument" if not actions[0].option_strings else "option"
        lines += [f"**{title}**", "", f"| {head} | |", "|---|---|", *map(_row, actions), ""]
    return "\n".join(lines)


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each subcommand, by name."""
    for action in make_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise PluginError("eri: no subcommands")


def _row(action: argparse.Action) -> str:
    """An option and its help as the row of a table."""
    metavar = action.metavar or (
        "|".join(map(str, action.choices)) if action.choices else action.dest.upper()
    )
    if isinstance(metavar, tuple):
        metavar = " ".join(metavar)
    value = "" if action.nargs == 0 else metavar
    names = ", ".join(action.option_strings)
    shown = html.escape(f"{names} {value}".strip()).replace("|", "&#124;")
    text = html.escape((action.help or "") % {"default": action.default, "prog": "eri"})
    return f'| <code class="option">{shown}</code> | {text.replace("|", "&#124;")} |'
