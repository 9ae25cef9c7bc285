"""OpenVINO on the CPU, in float32 or bfloat16.

`library` imports it, `tensors` converts arrays, `model` reads and compiles a graph, which
`gated_mlp` keeps from a crash, `compiled_models` keeps what was compiled, `executor` runs a
component, `parts` a denoiser that is cut at its first block, and `backend` ties them.
"""
