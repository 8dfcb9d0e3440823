"""The tree as a folder of this machine: a read-only FUSE file system, whose hot files the kernel reads by itself (passthrough).

`protocol` says what the bytes on /dev/fuse mean, `device` moves them, `serving` hands them to `filesystem`, whose tables are `nodes` and
`handles`; what it tells of comes from a `source`. `holder` keeps the mount alive when the serving process dies; `mounting` starts it all.
"""
