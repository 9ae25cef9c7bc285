"""NVIDIA Triton: writes a model repository from a bundle, and answers its requests.

`repository` writes the folder, `component_models` says what is in it for each component, and
`config` writes a model's `config.pbtxt`. `tensors` lists the inputs and outputs of the model that
runs the whole pipeline, `drawing` runs a request of it, and `model` is the file that Triton's
Python backend imports. Uses `pipeline` and the rooms below. Start with `repository`.
"""

from eri_runtime.triton.repository import PIPELINE, export_repository

__all__ = ["PIPELINE", "export_repository"]
