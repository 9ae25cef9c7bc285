"""`eri bench`: a bundle's engines beside PyTorch, each in a process of its own, taking turns.

    parent (measure)  ── newline JSON ──▶  worker of ours      (bench.worker)
                      ── newline JSON ──▶  worker of another   (found by `eri.bench.workers`)

The parent and our workers import no torch. What comes out is a `record.Record`.
"""
