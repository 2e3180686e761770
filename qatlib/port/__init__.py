"""Networks that were written elsewhere: for plain torch, or for the vendor's module.

Of `ai8x.from_torch`: `tracing` and `torch_graph` read the network, `problems` says what the chip lacks, `rewrites` replaces what
can be replaced, `fuse` makes layers of what is left. Of the vendor's module: `names`, `images`.
"""
