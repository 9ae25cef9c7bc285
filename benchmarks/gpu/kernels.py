"""The GPU's kernels of a few steps, by PyTorch's profiler, which sees ONNX Runtime's as well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.settings import WARM_STEPS, Settings
from benchmarks.gpu.subjects import begin, pipeline

LISTED = 25
NAME = 100  # characters


def kernels(settings: Settings, name: str, subjects: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yields a row for each subject: its kernels with the most time, of `WARM_STEPS` steps."""
    model = settings.model(name)
    on_gpu = settings.device == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    for subject in subjects:
        with pipeline(settings, model, subject) as pipe:
            list(begin(pipe, WARM_STEPS))
            with profile(activities=[activity]) as profiled:
                list(begin(pipe, WARM_STEPS))
                if on_gpu:
                    torch.cuda.synchronize()
        table = [
            {
                "name": each.key[:NAME],
                "calls": each.count,
                "ms": (each.self_device_time_total if on_gpu else each.self_cpu_time_total) / 1e3,
            }
            for each in profiled.key_averages()
        ]
        table.sort(key=lambda each: -each["ms"])
        yield {
            "part": "kernels",
            "subject": subject,
            "precision": model.bundle.components["denoiser"].precision,
            "steps": WARM_STEPS,
            "calls": sum(each["calls"] for each in table),
            "ms": round(sum(each["ms"] for each in table), 3),
            "kernels": [{**each, "ms": round(each["ms"], 4)} for each in table[:LISTED]],
        }
