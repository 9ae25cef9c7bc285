"""A comparison with PyTorch on a rented NVIDIA GPU: ten minutes, no network, no exporter.

`pack` makes the parts beforehand on any machine; `ten_minutes.sh` takes them to the GPU and runs
`__main__`, which does the stages of `plan` in their order. Start with `plan`.
"""
