"""Refuses options of `eri generate` that would change nothing: nobody sets one for that."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from eri_runtime.commands.subcommand import useless_option
from eri_runtime.errors import UsageError

if TYPE_CHECKING:  # they take NumPy, which a command that is refused early does without
    from eri_runtime.bundle import Bundle
    from eri_runtime.sampling import Guidance

Ignored = tuple[str, str, str | None]  # the option, what it was given with, and the way out


def check_combinations(options: argparse.Namespace) -> None:
    """Raises `UsageError` for an option that another one makes useless, before a bundle is read."""
    for option, got, fix in _useless(options):
        raise useless_option(option, got=got, fix=fix)


def _useless(options: argparse.Namespace) -> Iterator[Ignored]:
    """Yields the options that change nothing, whatever the bundle."""
    if options.lora_partial and not options.lora:
        yield "--lora-partial", "no --lora", "leave it out"
    if options.force and options.prompts is None:
        yield "--force", "one PROMPT, whose file is replaced", "leave it out"
    if options.step_cache_threshold is not None and options.step_cache is None:
        yield "--step-cache-threshold", "no --step-cache", "add `--step-cache first_block`"
    if options.bypass_guidance:
        named = {"--guidance": options.guidance, "--true-cfg": options.true_cfg}
        given = [name for name, value in named.items() if value is not None]
        if given:
            yield given[0], "--bypass-guidance, which leaves it out", "give one of them"


def check_for_bundle(options: argparse.Namespace, bundle: Bundle) -> None:
    """Raises `UsageError` for an option that does not apply to this bundle."""
    embeds = bundle.guidance_embedding
    if options.true_cfg is not None and bundle.family != "flux" and not embeds:
        fix = "its CFG is `--guidance`"
        raise UsageError("--true-cfg", got=f"a bundle of {bundle.family}", expected="Flux", fix=fix)
    if bundle.family == "flux" and not embeds and options.guidance is not None:
        got, fix = "a Flux without an embedded guidance", "give --negative and --true-cfg for CFG"
        raise UsageError("--guidance", got=got, expected="a model that reads it", fix=fix)


def check_without_cfg(options: argparse.Namespace, bundle: Bundle, guidance: Guidance) -> None:
    """Raises `UsageError` for an option of CFG, in a request whose scale leaves CFG out."""
    if (guidance.scale > 1.0).any():
        return
    own = bundle.family == "flux" or bundle.guidance_embedding
    names = ("true_cfg", "guidance_rescale", "guidance_interval", *(() if own else ("negative",)))
    names = ("negative", *names) if own and options.true_cfg is None else names
    fix = "give --negative and --true-cfg above 1" if own else "give --guidance above 1"
    for name in names:
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(option, got="a call without CFG", expected="CFG", fix=fix)


def check_not_input(options: argparse.Namespace, paths: list[Path]) -> None:
    """Raises `UsageError` if a picture would replace the one to start from, or its mask."""
    inputs = {path.resolve() for path in (options.image, options.mask) if path is not None}
    for path in paths:
        if path.resolve() in inputs:
            got, fix = f"{path}, which the command reads", "give another name"
            raise UsageError("--output", got=got, expected="another file", fix=fix)
