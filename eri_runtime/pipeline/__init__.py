"""The pipeline: runs a request through text encoders, denoising loop and VAE.

`pipeline` has the public class `Pipeline` and `load`, `request_runner` runs one request in one
memory mode, `generation` is a request whose steps are made together with those of others,
`memory_fallback` tries the next mode when memory runs out, `prompt_conditions` encodes the prompts,
and `result` is what a call returns. `step_callbacks` and `step_arrays` call a function between the
steps. `diffusers_methods`, `diffusers_advice` and `from_pretrained` have diffusers' methods. Start
with `pipeline`.
"""

from eri_runtime.pipeline.diffusers_methods import DiffusersMethods
from eri_runtime.pipeline.generation import Generation
from eri_runtime.pipeline.pipeline import Pipeline, load
from eri_runtime.pipeline.result import Result, numbered_paths

__all__ = [
    "DiffusersMethods",
    "Generation",
    "Pipeline",
    "Result",
    "load",
    "numbered_paths",
]
