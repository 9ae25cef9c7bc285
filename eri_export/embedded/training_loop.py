"""A training loop that can be killed at any time and resumed from its last saved state."""

from __future__ import annotations

import concurrent.futures
import copy
import logging
import math
import pathlib
import time
from collections.abc import Callable

import torch

from eri_runtime.partial_files import complete, partial_file

logger = logging.getLogger(__name__)

WORKERS = 2  # threads, each with its own part of the batch and its own random numbers
SAVE_SECONDS = 120
LossFunction = Callable[[torch.nn.Module, torch.Generator], dict[str, torch.Tensor]]


def ignore(_: Run) -> None:
    """Does nothing; the default of what `train` calls after a step."""


class Run:
    """A model with its moving average, optimizer, random state and elapsed time, in one file.

    If the file exists, the run resumes from it.
    """

    def __init__(
        self,
        path: pathlib.Path,
        model: torch.nn.Module,
        *,
        lr: float,
        seed: int,
        workers: int = WORKERS,
    ) -> None:
        self.path = path
        self.model = model
        self.lr = lr
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(_groups(model), lr=lr, betas=(0.9, 0.99))
        self.generators = [torch.Generator().manual_seed(seed + 100 * i) for i in range(workers)]
        self.step = 0
        self.elapsed = 0.0
        if path.is_file():
            self.load()

    def load(self) -> None:
        """Restores the state from the file."""
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        for generator, value in zip(self.generators, state["generators"], strict=True):
            generator.set_state(value)
        self.step, self.elapsed = state["step"], state["elapsed"]
        logger.info("%s: resumed at step %d, %.1f min", self.path, self.step, self.elapsed / 60)

    def save(self) -> None:
        """Saves the state, replacing the file atomically."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": [generator.get_state() for generator in self.generators],
            "step": self.step,
            "elapsed": self.elapsed,
        }
        with partial_file(self.path) as (file, partial):
            torch.save(state, file)
            file.flush()
            complete(partial, self.path)


After = Callable[[Run], object]


def load_average(path: pathlib.Path, model: torch.nn.Module) -> None:
    """Loads a run's moving average into `model`; raises ValueError if there is no such run."""
    if not path.is_file():
        raise ValueError(f"{path}: no such run; train the stage `{path.stem}` first")
    model.load_state_dict(torch.load(path, weights_only=True)["ema"])


def train(run: Run, loss_function: LossFunction, *, minutes: float, after: After = ignore) -> None:
    """Trains until the run's elapsed time reaches `minutes`, annealing the learning rate to zero.

    `after` is called before the first step and after each step; its time does not count.

    Each worker computes its gradients on one core, and workers meet only between steps. On a loaded
    machine this is several times faster than two cores inside every operation.
    """
    run.model.train()
    after(run)
    saved = started = time.monotonic()
    totals: dict[str, float] = {}
    with concurrent.futures.ThreadPoolExecutor(
        len(run.generators), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        while run.elapsed < 60 * minutes:
            rate = _set_rate(run, minutes)
            losses = _gradients(run, loss_function, pool)
            _descend(run)
            now = time.monotonic()
            run.elapsed, started = run.elapsed + now - started, now
            _accumulate(totals, losses, run, rate)
            if now - saved > SAVE_SECONDS:
                run.save()
                saved = now
            after(run)
            started = time.monotonic()
    run.save()


def _gradients(
    run: Run, loss_function: LossFunction, pool: concurrent.futures.Executor
) -> dict[str, float]:
    """Sets the parameters' gradients to the workers' mean and returns the mean losses."""
    parameters = [parameter for parameter in run.model.parameters() if parameter.requires_grad]

    def work(generator: torch.Generator) -> tuple[dict[str, float], list[torch.Tensor | None]]:
        losses = loss_function(run.model, generator)
        gradients = torch.autograd.grad(losses["loss"], parameters, allow_unused=True)
        return {name: value.item() for name, value in losses.items()}, list(gradients)

    results = list(pool.map(work, run.generators))
    for parameter, *parts in zip(parameters, *(result[1] for result in results), strict=True):
        known = [part for part in parts if part is not None]
        parameter.grad = torch.stack(known).mean(dim=0) if known else None
    first = results[0][0]
    return {name: sum(result[0][name] for result in results) / len(results) for name in first}


def _set_rate(run: Run, minutes: float) -> float:
    """Sets and returns the learning rate: 200 steps of warm-up, then a cosine to zero."""
    progress = run.elapsed / (60 * minutes)
    rate = run.lr * min(1.0, (run.step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress))
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    return rate


def _descend(run: Run) -> None:
    """Makes an optimizer step and updates the moving average."""
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    decay = min(0.999, (1 + run.step) / (10 + run.step))
    with torch.no_grad():
        for average, value in zip(run.ema.parameters(), run.model.parameters(), strict=True):
            average.lerp_(value, 1 - decay)


def _accumulate(totals: dict[str, float], losses: dict[str, float], run: Run, rate: float) -> None:
    """Adds up the losses, and logs and clears their mean every 100 steps."""
    for name, value in losses.items():
        totals[name] = totals.get(name, 0.0) + value / 100
    if run.step % 100 == 0:
        figures = " ".join(f"{name} {value:.5f}" for name, value in totals.items())
        logger.info("step %d %.1f min lr %.2e %s", run.step, run.elapsed / 60, rate, figures)
        totals.clear()


def _groups(model: torch.nn.Module) -> list[dict[str, object]]:
    """Returns the trained parameters in two groups: only matrices have weight decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": 0.01},
        {"params": vectors, "weight_decay": 0.0},
    ]
