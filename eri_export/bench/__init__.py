"""Workers of `eri bench` that are not ours: diffusers' own pipelines, and engines behind them.

The runtime finds them by the entry points of `eri.bench.workers` and never imports them.
"""
