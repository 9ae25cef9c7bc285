"""TensorRT and TensorRT for RTX, without torch.

`library` imports either of them, `plans` chooses a plan for this GPU, and `engine` opens it.
`kernel_cache` keeps what the library compiles on this machine. `executor` runs a component.
`step_graph` runs the denoising loop: its states lie in the slots of `slot`, and `captured_step`
runs one step in fixed buffers as a CUDA graph. `cuda` wraps CUDA's runtime. `backend` ties them.
"""
