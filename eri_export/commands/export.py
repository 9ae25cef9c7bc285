"""The command `eri export`, which the runtime's command finds by its entry point."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from eri_export.choices import make_gate, make_ranges
from eri_export.commands.build import add_target, build_after_export, check_target
from eri_export.commands.check_paths import check_paths
from eri_export.commands.export_options import CHOSEN, OPTIONS
from eri_export.commands.usable_backends import usable_line
from eri_export.progress import Progress, Stopwatch
from eri_export.publishing.atomic_publish import replaces, terminated_as_interrupt
from eri_runtime.bundle import GateKind, read_bundle
from eri_runtime.commands.output import Output, add_output_options
from eri_runtime.commands.subcommand import Subparsers, add_command, parse_lora, useless_option
from eri_runtime.errors import BackendError, UsageError
from eri_runtime.install_hint import install_hint

NEEDS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")
EXAMPLES = (
    "./stable-diffusion-xl -o engines/sdxl --precision fp16",
    "flux1-dev.safetensors --precision bf16 --size 512:1024:2048",
    "OWNER/NAME --dry-run",
)


def export_command(commands: Subparsers) -> None:
    """Registers `eri export`."""
    summary = "Export a checkpoint to a bundle."
    parser = add_command(commands, "export", summary, export, EXAMPLES)
    for names, settings in OPTIONS:
        parser.add_argument(*names, **settings)
    add_target(parser)
    add_output_options(parser)


def export(options: argparse.Namespace) -> None:
    """Runs `eri export`: exports and prints a summary, or prints the plan with `--dry-run`."""
    require_extra()
    output = Output.of(options)
    target = options.output or Path("engines") / default_name(options.checkpoint)
    ranges = make_ranges(
        size=options.size, batch=options.batch, tokens=options.tokens, static=options.static
    )
    chosen = {name: getattr(options, name) for name in CHOSEN}
    chosen["loras"] = [parse_lora(each) for each in options.lora]
    gate = make_gate(options.gate, options.gate_memory)
    check_paths(options, target)
    check_target(options)
    if options.lora_partial and not options.lora:
        raise useless_option("--lora-partial", got="no --lora")
    if not options.dry_run:
        check_new(target, options.force)
    output.note(f"opening {options.checkpoint}")
    arguments = {"checkpoint": options.checkpoint, "ranges": ranges, **chosen}
    with terminated_as_interrupt():
        if options.dry_run:
            dry_run(target, output, gate.kind, **arguments)
            return
        facts = run_export(target, output, gate=gate.kind, gate_memory=gate.memory, **arguments)
        plans = build_after_export(target, options, output)
    if (unusable := usable_line(read_bundle(target))) is not None:
        output.say(unusable)
    output.finish(**facts, plans=plans, unusable=unusable)


def check_new(target: Path, force: bool) -> None:
    """Raises `UsageError` for a place that holds a bundle, unless `force` lets it be replaced."""
    if replaces(target) and not force:
        fix = "add --force to replace it, or give another name with -o"
        raise UsageError(target, got="a bundle", expected="a new name", fix=fix)


def default_name(checkpoint: str) -> str:
    """Returns NAME of engines/NAME: the name of a folder, a repository, or a file's stem."""
    path = Path(checkpoint.partition(":")[2] or checkpoint)
    name = path.resolve().name
    return name.removesuffix(path.suffix) if path.suffix in (".safetensors", ".gguf") else name


def dry_run(target: Path, output: Output, gate: GateKind, **arguments: Any) -> None:
    """Prints the plan of an export with this gate; raises the errors of the export."""
    from eri_export.commands.dry_run import dry_run_facts, dry_run_lines
    from eri_export.plan.plan import make_plan

    plan = make_plan(**arguments)
    for line in dry_run_lines(plan, target, gate):
        output.say(line)
    output.finish(**dry_run_facts(plan, target, gate))


def require_extra(command: str = "eri export") -> None:
    """Raises `BackendError`, naming the command, if the export extra is not installed."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        fix = install_hint("export")
        raise BackendError(
            command, got=f"no {', '.join(missing)}", expected="the export extra", fix=fix
        )


def run_export(target: Path, output: Output, **arguments: Any) -> dict[str, Any]:
    """Exports with progress bars and prints the summary; returns the facts for `--json`."""
    from eri_export.commands.export_summary import STAGES, summary_facts, summary_lines
    from eri_export.publishing.export_bundle import export as export_checkpoint
    from eri_runtime.commands.progress_bars import Unit

    def draw(event: Progress) -> None:
        unit: Unit = "bytes" if event.stage == "write" else "steps"
        advance(event.component, event.done, event.total, doing=event.stage, unit=unit)

    watch = Stopwatch(draw)
    with output.progress() as advance:
        bundle = export_checkpoint(output=target, progress=watch, **arguments)
    output.lap("all")
    for line in summary_lines(bundle, watch, output.seconds["all"]):
        output.say(line)
    output.seconds = {name: watch.of(name) for name in STAGES}
    return summary_facts(bundle)
