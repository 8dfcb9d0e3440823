"""Who is measured: the store itself, the limits, and the peers, each in a process of its own, used as its documentation says is fastest.

`interface` is what each of them does, `catalogue` who there is, `process` and `worker` how they take turns.
"""
