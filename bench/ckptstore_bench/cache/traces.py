"""Who reads which file when? Generated traces of the two kinds that separate policies: skewed popularity, and scans that come between.

- `zipf`: each read takes file k with a probability of 1/k^0.9, as models of a hub are read: a few all the time, most hardly ever.
- `scan`: the same, and after every 400 reads somebody reads 300 files once that nobody reads again: a backup, an evaluation of every
  checkpoint, a download of everything.

Sizes are lognormal, a factor of 3.3 either way: shards beside configurations would be further apart, and favour whoever keeps small files.
"""

from __future__ import annotations

import random
from bisect import bisect
from itertools import accumulate

#: (file, its bytes), in the order of reading
Trace = list[tuple[int, int]]

SKEW = 0.9
SCAN_EVERY, SCAN_FILES = 400, 300
_MEAN_LOG, _SPREAD_LOG = 18.0, 1.2  # a median of 66 MB


def zipf(files: int, reads: int, seed: int) -> Trace:
    generator = random.Random(seed)
    sizes = [_size(generator) for _ in range(files)]
    shares = list(accumulate(1 / (rank + 1) ** SKEW for rank in range(files)))
    chosen = (bisect(shares, generator.random() * shares[-1]) for _ in range(reads))
    return [(file, sizes[file]) for file in chosen]


def scan(files: int, reads: int, seed: int) -> Trace:
    generator = random.Random(seed + 1)
    popular, found, fresh = zipf(files, reads, seed), [], files
    for start in range(0, len(popular), SCAN_EVERY):
        found += popular[start : start + SCAN_EVERY]
        found += [(file, _size(generator)) for file in range(fresh, fresh + SCAN_FILES)]
        fresh += SCAN_FILES
    return found


TRACES = {"zipf": zipf, "scan": scan}


def _size(generator: random.Random) -> int:
    return int(generator.lognormvariate(_MEAN_LOG, _SPREAD_LOG)) + 1
