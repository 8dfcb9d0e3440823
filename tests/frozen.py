"""What the fork server has imported is left alone by the garbage collector of the daemons that are forked from it.

Otherwise each daemon's first full collection looks at some hundred thousand objects that never go away, and writes to every page of
them that it shares with the others: a fifth of the CPU time of a daemon that lives for some seconds.
"""

from __future__ import annotations

import gc

gc.collect()
gc.freeze()
