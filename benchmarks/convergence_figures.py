"""The two pictures of `benchmarks.convergence`; drawn again from its numbers by

python -m benchmarks.convergence_figures benchmarks/results
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

# Okabe & Ito's palette, told apart with any colour vision; markers and dashes say it again
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
SHADES = (SKY, ORANGE, BLUE)  # of growing numbers of steps
ERROR = "relative error of the final latents"
TILE, GAP, MARGIN = 132, 6, 70


def require() -> None:
    """Say how to install matplotlib, before hours of work need it."""
    try:
        import matplotlib as mpl
    except ImportError:
        sys.exit("matplotlib is missing: pip install '.[bench]'")
    mpl.use("Agg")


def curves(results: Mapping[str, Any], path: Path) -> None:
    """Four panels of `convergence.json`: two sets of levels, noise, guidance."""
    from matplotlib import pyplot

    pyplot.rcParams |= {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    figure, axes = pyplot.subplots(2, 2, figsize=(10.4, 8.6), layout="constrained")
    _ode(axes[0, 0], results["ode"], "default", "the checkpoint's levels")
    _ode(axes[0, 1], results["ode"], "karras", "Karras's levels")
    _sde(axes[1, 0], results["sde"])
    _guided(axes[1, 1], results["guidance"])
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _ode(axis: Any, found: Mapping[str, Any], sigmas: str, levels: str) -> None:
    smooth = found["levels"][sigmas]["analytic"]["samplers"]
    for name, run in found["levels"][sigmas]["samplers"].items():
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
    axis.axhline(found["uncertainty"], color="0.5", linestyle=":")
    text = "the reference's own uncertainty"
    axis.annotate(text, (210, found["uncertainty"] * 1.15), color="0.35", fontsize=8.5, ha="right")
    _finish(axis, f"No noise, guidance {found['guidance']:g}, {levels}", "network evaluations")
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


def _sde(axis: Any, found: Mapping[str, Any]) -> None:
    lines = {"brownian": "-", "torch": "--"}
    for name, runs in found["samplers"].items():
        colour, marker = STYLES[name]
        for noise, run in runs.items():
            axis.loglog(
                found["steps"],
                run["errors"],
                color=colour,
                marker=marker,
                markersize=5,
                linestyle=lines[noise],
                label=f"{name}, {'one path' if noise == 'brownian' else 'independent'}",
            )
    _finish(axis, f"With noise, to itself at {found['reference_steps']} steps", "steps")
    axis.set_ylabel(ERROR)
    _counts(axis, found["steps"])
    axis.legend(fontsize=8.5, frameon=False)


def _guided(axis: Any, found: Mapping[str, Any]) -> None:
    scales = [each["scale"] for each in found["scales"]]
    lines = {"flow_euler": "-", "dpmpp_2m": "--"}
    for sampler, line in lines.items():
        for i, steps in enumerate(found["steps"]):
            errors = [each["errors"][sampler][i] for each in found["scales"]]
            axis.semilogy(
                scales,
                errors,
                color=SHADES[i],
                marker=STYLES[sampler][1],
                markersize=5,
                linestyle=line,
                label=f"{sampler}, {steps} steps",
            )
    _finish(axis, "Guidance wants more steps", "guidance scale")
    axis.set_ylabel(ERROR)
    axis.set_ylim(8e-3, 200)
    axis.legend(fontsize=8.5, frameon=False, ncols=2, loc="upper left")


def _finish(axis: Any, title: str, x: str) -> None:
    axis.set_title(title, fontsize=11, loc="left")
    axis.set_xlabel(x)
    axis.grid(visible=True, which="major", color="0.9")


def _counts(axis: Any, ticks: Any) -> None:
    """Plain numbers on a logarithmic axis."""
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()


def strip(pictures: Mapping[tuple[float, int], Image.Image], path: Path) -> None:
    """Rows of guidance, columns of steps, labelled."""
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
