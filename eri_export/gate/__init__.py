"""The gate before publication: compares every exported graph with PyTorch.

`parity` compares. `cases` chooses the inputs, `real_inputs` makes those of a real generation,
`reduced_copy` makes a shallower copy of a network that is too large to run, `pytorch_reference`
runs PyTorch, `subjects` says which graphs the CPU runs, `step_graph` compares a step graph with its
formula and `upgraded_step` with an older one, `segments` checks a graph's segments, `lora_inputs`
draws LoRAs, `other_engines` runs engines other than ONNX Runtime, and `report` has the result.
Start with `parity`.
"""
