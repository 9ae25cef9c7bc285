"""Graphs: from a network on fake tensors to a finished ONNX graph.

`recipes` describe how each component is built and called; `trace` exports it; `repeated_blocks`
traces each kind of block once; `passes` rewrite the graph, one file per pass; `step_graph` composes
guidance and solver around the denoiser; `memory` estimates what a run needs; `weight_names` finds
each weight in the checkpoint's files. Start with `trace`.
"""
