"""The gate before publication: compares every exported graph with PyTorch.

`parity` compares. `cases` chooses the inputs, `real_inputs` makes those of a real generation,
`reduced_copy` makes a shallower copy of a network that is too large to run, `subjects` says which
graphs the CPU runs, `step_graph` makes the inputs of a step graph and its formula, `upgraded_step`
compares it with an older one, `segments` checks a graph's segments, `lora_inputs` draws LoRAs, and
`report` has the result.

`window` says whether a network fits in the memory of the gate. If it does, `pytorch_reference` and
`graph_runs` run it in one piece; if not, `streamed_reference` runs PyTorch a layer at a time and
`graph_parts` an engine a part of the graph at a time. `other_engines` runs engines other than ONNX
Runtime. Start with `parity`.
"""
