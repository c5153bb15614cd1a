"""Random numbers of a run: one stream for each use, none shared with a run of another seed."""

from __future__ import annotations

import zlib

import numpy as np


def stream_seed(seed: int, use: str) -> int:
    """What seeds the run's stream for `use`, e.g. "exploration"; 63 bits.

    Of seed + 1, seed + 2, ..., one run's exploration would be the next run's batches.
    """
    entropy = [seed, zlib.crc32(use.encode())]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1
