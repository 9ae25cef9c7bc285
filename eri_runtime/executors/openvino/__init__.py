"""OpenVINO on the CPU, in float32 or bfloat16.

`library` imports it, `model` reads and compiles a graph, `executor` runs a component, and `backend`
ties them.
"""
