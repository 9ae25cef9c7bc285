"""ONNX Runtime on the CPU and on CUDA.

`provider` describes an execution provider, `session` opens a component, `step_graph` runs the loop
on `buffers`, and `backend` ties them. `session_options` has what every session is opened with, and
`optimized_graph` opens sessions with other weights. For CUDA, `cuda_libraries` loads NVIDIA's
libraries, `captured_step` captures CUDA graphs, and `capture_guard` keeps other threads off
meanwhile.
"""
