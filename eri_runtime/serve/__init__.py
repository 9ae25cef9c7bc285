"""Serving: many requests at once, batched by the step, in workers that may die.

`engine` is the front: `Engine.submit` returns an asynchronous iterator of previews and pictures.
`messages` is what goes in and out, `options` what an operator decides, `observer` what metrics are
made of. `http/` is the server around it. Start with `engine`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

# where each name lives: they are imported on first use, so that the command's options cost little
_MODULES = {
    "Ended": "observer",
    "Engine": "engine",
    "EngineOptions": "options",
    "Event": "messages",
    "Limits": "options",
    "Model": "status",
    "Observer": "observer",
    "PictureRequest": "messages",
    "Pictures": "messages",
    "Progress": "messages",
    "Status": "status",
    "StepTime": "observer",
    "Submission": "submission",
}

if not TYPE_CHECKING:  # a type checker must not take every name for one of ours

    def __getattr__(name: str) -> object:
        """Imports a public name from its module on first use."""
        from importlib import import_module

        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{_MODULES[name]}")
        return globals().setdefault(name, getattr(module, name))
