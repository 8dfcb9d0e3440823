"""The hot cache: this node's copies of files that lie elsewhere, on the disk of its fastest tier.

`cache` is what the rest of the daemon asks; `copy` is one version's copy, block by block; `block_file` and `block_map` are what lies on the
disk; `policy` says what goes first, `read_ahead` what is fetched before it is asked for, `room` how much may be kept.
"""
