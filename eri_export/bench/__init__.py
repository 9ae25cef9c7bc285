"""Workers of `eri bench` for PyTorch and for peers: diffusers' pipelines on several engines.

The runtime finds them through the entry points `eri.bench.workers` and runs them with `python -m`;
it never imports them. `diffusers_calls` times a pipeline; `torch_worker` and `optimum_worker` open
one. Start with `torch_worker`. May import every room of the exporter but `commands`.
"""
