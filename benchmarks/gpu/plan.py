"""The stages of the ten minutes, in order of value.

Seconds are estimates: a stage that no longer fits the budget is skipped. `smoke` comes first and
stops everything if it fails; torch.compile comes last, as it may take any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SMOKE = "smoke"
TINY = ("{}/numpy", "{}/step", "{}/captured")
CAPTURED, EAGER = "{}/captured", "torch/eager"
# forms of the graph and options of ONNX Runtime, each against the defaults
VARIANTS = (
    "plain",  # the graph without ONNX Runtime's own operators for CUDA
    "cudnn_conv_algo_search=EXHAUSTIVE",  # ONNX Runtime's own default
    "cudnn_conv_algo_search=DEFAULT",
)


@dataclass(frozen=True)
class Stage:
    """One process of the run.

    Attributes:
        name: Its name in the rows.
        worker: What it does, a name in `stages.WORKERS`.
        model: The bundle that it runs; empty if none.
        subjects: The subjects, `{}` for the backend; see `subjects`.
        seconds: An estimate of its time.
    """

    name: str
    worker: str
    model: str = ""
    subjects: tuple[str, ...] = ()
    seconds: float = 20.0

    def subjects_on(self, backend: str) -> tuple[str, ...]:
        """Returns the subjects with the backend's name."""
        return tuple(each.format(backend) for each in self.subjects)


def _tiny(name: str, seconds: float = 12.0) -> tuple[Stage, ...]:
    """Returns the stages of a tiny bundle: every run of every loop, and whole pictures."""
    subjects = (*TINY, "{}/captured+plain")
    return (
        Stage(name, "measure", name, subjects, seconds),
        Stage(f"{name} picture", "picture", name, (CAPTURED,), seconds / 2),
    )


PLAN: tuple[Stage, ...] = (
    Stage(SMOKE, "smoke", seconds=10),
    *_tiny("tiny-sdxl"),
    *_tiny("tiny-sd35"),
    *_tiny("tiny-flux"),
    *_tiny("tiny-sdxl-fp16"),
    *_tiny("tiny-sdxl-dynamic"),
    Stage("sdxl fill", "fill", "sdxl", seconds=15),
    Stage("sdxl", "measure", "sdxl", (EAGER, "torch/channels-last", *TINY), 70),
    Stage("sdxl kernels", "kernels", "sdxl", ("{}/step", EAGER), 30),
    *(Stage(f"sdxl {each}", "measure", "sdxl", (f"{CAPTURED}+{each}",), 20) for each in VARIANTS),
    Stage("flux fill", "fill", "flux", seconds=30),
    Stage("flux", "measure", "flux", (EAGER, CAPTURED), 90),
    Stage("sd35 fill", "fill", "sd35", seconds=15),
    Stage("sd35", "measure", "sd35", (EAGER, CAPTURED), 50),
    Stage(
        "sdxl vae", "decode", "sdxl", (EAGER, "torch/tf32", "{}/numpy", "{}/numpy+use_tf32=1"), 40
    ),
    Stage("sdxl picture", "picture", "sdxl", (CAPTURED,), 40),
    Stage("sdxl compile", "measure", "sdxl", (CAPTURED, "torch/compile"), 110),
    Stage("flux compile", "measure", "flux", (CAPTURED, "torch/compile"), 110),
    Stage("sd35 compile", "measure", "sd35", (CAPTURED, "torch/compile"), 110),
)
NAMES: Mapping[str, Stage] = {each.name: each for each in PLAN}
