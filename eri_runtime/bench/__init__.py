"""`eri bench`: compares a bundle's engines with PyTorch, each in its own process, in turns.

`plan` holds what to measure, `measure` runs it, `record` is the JSON result, `table` and `report`
show a result, `compare` finds regressions between two results. `worker_client` and `worker_server`
are the two ends of a measured process; `eri_worker` is the worker for our own engines.
Start reading with `plan`, then `measure`. May import every other room of the runtime but
`commands`.
"""
