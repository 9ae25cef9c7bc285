"""Draws the two figures of `benchmarks.convergence`.

`python -m benchmarks.convergence_figures benchmarks/results` draws the first one again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

# Okabe & Ito's palette for colour-blind readers; markers and dashes repeat the distinction
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
STYLES = {
    "flow_euler": (BLUE, "o"),
    "flow_heun": (VERMILION, "s"),
    "dpm2": (ORANGE, "D"),
    "dpmpp_2m": (GREEN, "^"),
    "unipc": (PURPLE, "v"),
    "lms": (BLACK, "x"),
    "euler_a": (BLUE, "o"),
    "dpmpp_2m_sde": (GREEN, "^"),
    "dpmpp_sde": (VERMILION, "s"),
}
SHADES = (SKY, ORANGE, BLUE)  # for increasing numbers of steps
ERROR = "relative error of the final latents"
TILE, GAP, MARGIN = 132, 6, 70


def require() -> None:
    """Exits if matplotlib is not installed, before hours of measurements."""
    try:
        import matplotlib as mpl
    except ImportError:
        sys.exit("matplotlib is missing: pip install '.[bench]'")
    mpl.use("Agg")


def curves(results: Mapping[str, Any], path: Path) -> None:
    """Draws `convergence.json` in four panels: two sets of noise levels, noise, guidance."""
    from matplotlib import pyplot

    pyplot.rcParams |= {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    figure, axes = pyplot.subplots(2, 2, figsize=(10.4, 8.6), layout="constrained")
    _ode(axes[0, 0], results["ode"], "default", "the checkpoint's levels")
    _ode(axes[0, 1], results["ode"], "karras", "Karras's levels")
    _sde(axes[1, 0], results["sde"])
    _guided(axes[1, 1], results["guidance"])
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    figure.savefig(path, dpi=110)
    with Image.open(path) as drawn:
        drawn.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    pyplot.close(figure)


def _ode(axis: Any, results: Mapping[str, Any], sigmas: str, levels: str) -> None:
    """Draws errors against evaluations for the samplers without noise."""
    smooth = results["levels"][sigmas]["analytic"]["samplers"]
    for name, run in results["levels"][sigmas]["samplers"].items():
        colour, marker = STYLES[name]
        fitted = run["fitted"]
        order = f"{fitted['order']:.1f}" if fitted else "–"
        axis.loglog(
            run["evaluations"],
            run["errors"],
            color=colour,
            marker=marker,
            markersize=5,
            label=f"{name}  {order} ({smooth[name]['order']:.1f})",
        )
    axis.axhline(results["uncertainty"], color="0.5", linestyle=":")
    text = "the reference's own uncertainty"
    axis.annotate(
        text, (210, results["uncertainty"] * 1.15), color="0.35", fontsize=8.5, ha="right"
    )
    _finish(axis, f"No noise, guidance {results['guidance']:g}, {levels}", "network evaluations")
    axis.set_ylabel(ERROR)
    axis.set_ylim(5e-5, 30)
    _counts(axis, (4, 8, 16, 32, 64, 128))
    title = "order (on a smooth problem)"
    axis.legend(
        fontsize=8.5,
        frameon=False,
        title=title,
        title_fontsize=8.5,
        loc="lower left",
        bbox_to_anchor=(0, 0.07),
    )


def _sde(axis: Any, results: Mapping[str, Any]) -> None:
    """Draws errors against steps for the samplers with noise."""
    lines = {"brownian": "-", "torch": "--"}
    for name, runs in results["samplers"].items():
        colour, marker = STYLES[name]
        for noise, run in runs.items():
            axis.loglog(
                results["steps"],
                run["errors"],
                color=colour,
                marker=marker,
                markersize=5,
                linestyle=lines[noise],
                label=f"{name}, {'one path' if noise == 'brownian' else 'independent'}",
            )
    _finish(axis, f"With noise, to itself at {results['reference_steps']} steps", "steps")
    axis.set_ylabel(ERROR)
    _counts(axis, results["steps"])
    axis.legend(fontsize=8.5, frameon=False)


def _guided(axis: Any, results: Mapping[str, Any]) -> None:
    """Draws errors against the guidance scale."""
    scales = [each["scale"] for each in results["scales"]]
    lines = {"flow_euler": "-", "dpmpp_2m": "--"}
    for sampler, line in lines.items():
        for i, steps in enumerate(results["steps"]):
            errors = [each["errors"][sampler][i] for each in results["scales"]]
            axis.semilogy(
                scales,
                errors,
                color=SHADES[i],
                marker=STYLES[sampler][1],
                markersize=5,
                linestyle=line,
                label=f"{sampler}, {steps} steps",
            )
    _finish(axis, "More guidance needs more steps", "guidance scale")
    axis.set_ylabel(ERROR)
    axis.set_ylim(8e-3, 200)
    axis.legend(fontsize=8.5, frameon=False, ncols=2, loc="upper left")


def _finish(axis: Any, title: str, x: str) -> None:
    """Sets title, label and grid."""
    axis.set_title(title, fontsize=11, loc="left")
    axis.set_xlabel(x)
    axis.grid(visible=True, which="major", color="0.9")


def _counts(axis: Any, ticks: Any) -> None:
    """Sets plain numbers as ticks of a logarithmic axis."""
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()


def strip(pictures: Mapping[tuple[float, int], Image.Image], path: Path) -> None:
    """Draws the pictures in labelled rows of guidance scales and columns of steps."""
    scales, steps = (sorted({key[i] for key in pictures}) for i in (0, 1))
    step, top = TILE + GAP, 34
    sheet = Image.new("RGB", (MARGIN + len(steps) * step, top + len(scales) * step), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, count in enumerate(steps):
        centre = MARGIN + column * step + TILE // 2
        text = f"{count} steps"
        draw.text((centre, top // 2), text, fill="black", font=font, anchor="mm")
    for row, scale in enumerate(scales):
        middle = top + row * step + TILE // 2
        draw.text((MARGIN // 2, middle - 9), "guidance", fill="black", font=font, anchor="mm")
        draw.text((MARGIN // 2, middle + 9), f"{scale:g}", fill="black", font=font, anchor="mm")
        for column, count in enumerate(steps):
            tile = pictures[scale, count].resize((TILE, TILE), Image.Resampling.BICUBIC)
            sheet.paste(tile, (MARGIN + column * step, top + row * step))
    sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


if __name__ == "__main__":
    require()
    folder = Path(sys.argv[1])
    curves(json.loads((folder / "convergence.json").read_text()), folder / "convergence.png")
