"""What the benchmarks share: common options, and turns with a baseline.

Without PyTorch, since the workers that a benchmark starts import what it imports.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.report.markdown import MarkedPlace
from mtrl.schema import ConfigError

COMMON: dict[str, dict[str, Any]] = {
    "device": {"help": "auto, cpu, cuda or cuda:i"},
    "threads": {"type": int, "help": "CPU threads; default: all cores"},
    "minutes": {"type": float, "help": "about how long to measure"},
    "seconds": {"type": float, "help": "watched for each row"},
}


def make_parser(file: str, doc: str, **common: Any) -> argparse.ArgumentParser:
    """common: {name: default} of the options in COMMON that the benchmark has."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    for name, default in common.items():
        parser.add_argument(f"--{name}", default=default, **COMMON[name])
    MarkedPlace.option(parser, f"bench/{Path(file).name}")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="CSV file for the table")
    return parser


def known(describe: Callable[[str], object]) -> Callable[[str], str]:
    """For `type=`: a name that `describe` knows, or else one line with what it raises."""

    def name(word: str) -> str:
        try:
            describe(word)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return word

    return name


def run(main: Callable[[], None]) -> None:
    """Bad input ends in one line and exit code 2."""
    try:
        main()
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def take_turns(
    works: Sequence[Callable[[], float]],
    until: float,
    end: float = math.inf,
    *,
    fewest: int = 3,
    most: int = 100,
) -> NDArray[np.float64]:
    """Seconds of each [turn, work], so that a busy machine slows all works alike.

    until: no turn begins that would end later, after the fewest; end: none after the first.
    """
    turns: list[list[float]] = []
    started = time.perf_counter()
    while len(turns) < most:
        now = time.perf_counter()
        next_end = now + (now - started) / max(len(turns), 1)
        if (len(turns) >= fewest and next_end > until) or (turns and now >= end):
            break
        turns.append([work() for work in works])
    return np.array(turns)
