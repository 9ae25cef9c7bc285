"""Serving: many requests at once, batched by the step, in workers that may die.

`engine` is the front: `Engine.submit` returns an asynchronous iterator of previews and pictures.
`messages` is what goes in and out, `options` what an operator decides, `observer` what metrics are
made of. `http/` is the server around it. Start with `engine`.
"""

from eri_runtime.serve.engine import Engine
from eri_runtime.serve.messages import Event, PictureRequest, Pictures, Progress
from eri_runtime.serve.observer import Ended, Observer, StepTime
from eri_runtime.serve.options import EngineOptions, Limits
from eri_runtime.serve.status import Model, Status
from eri_runtime.serve.submission import Submission

__all__ = [
    "Ended",
    "Engine",
    "EngineOptions",
    "Event",
    "Limits",
    "Model",
    "Observer",
    "PictureRequest",
    "Pictures",
    "Progress",
    "Status",
    "StepTime",
    "Submission",
]
