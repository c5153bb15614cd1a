"""Train a supervised problem with many methods and seeds, one run after another in one process
(so the peak memory that a run logs is the largest so far).

    python scripts/train_supervised.py supervised_digits                    # all methods, 3 seeds
    python scripts/train_supervised.py supervised_celeba --methods unitary pcgrad imtl \\
        -- --data-dir /data --train.epochs 100

`rotograd` stands for unitary with RotoGrad, `single_tasks` for a run on each task alone, with its
own settings where configs/gama has some. What follows `--` goes to every run, as to `mtrl
supervised`. Finished runs are left alone, others begin again: the same command continues where it
was ended. Seeds take turns, so that a part of them can be compared early
(scripts/compare_supervised.py).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mtrl.options.command_line import presets
from mtrl.run.directory import RunDirectory
from mtrl.run.state import is_run, read_run
from mtrl.schema import ConfigError
from mtrl.supervised.command import load_config, with_overrides
from mtrl.supervised.config import SupervisedConfig
from mtrl.supervised.methods import available
from mtrl.supervised.preparation import load_data
from mtrl.supervised.train import train

METHODS = [method for method in available() if method != "fixed"]  # fixed has no weights of its own
ROTOGRAD, SINGLE = "rotograd", "single_tasks"


def configure(
    name: str, method: str, seed: int, root: Path, more: list[str]
) -> Iterator[SupervisedConfig]:
    """The runs of a method and a seed: one, but for `single_tasks`."""
    line = ["--smto.name", "unitary" if method in (ROTOGRAD, SINGLE) else method]
    line += ["--seed", str(seed), *more]
    if method == ROTOGRAD:
        line += ["--rotograd.enabled"]
    default = load_config(name)
    parts: dict[Path, list[str]] = {Path(method): []}  # folder: presets laid over the first
    if method == SINGLE:
        parts = {
            Path(method, task): [f"gama/{default.problem}/single_{task}"]
            for task in default.problem_tasks
        }
    known = presets()
    for folder, own in parts.items():
        config = load_config(name, *(preset for preset in own if preset in known))
        words = ["--run-dir", str(root / folder / f"seed_{seed}")]
        if method == SINGLE:
            words += ["--tasks", folder.name]
        yield with_overrides(config, "train_supervised", [*line, *words])


def is_finished(path: Path) -> bool:
    return is_run(path) and read_run(path).finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", help="preset or configuration file")
    parser.add_argument("--methods", nargs="+", default=[*METHODS, ROTOGRAD])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, help="folder of the runs; default: runs/<config>")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    options, more = parser.parse_args(words[:cut]), words[cut + 1 :]
    root = options.out or Path("runs") / Path(options.config).stem
    try:
        configs = [
            config
            for seed in options.seeds
            for method in options.methods
            for config in configure(options.config, method, seed, root, more)
        ]
    except ConfigError as error:
        parser.error(str(error))
    left = [config for config in configs if not is_finished(config.run_path)]
    print(f"{len(left)} of {len(configs)} runs to go")
    started = time.monotonic()
    for number, config in enumerate(left, start=1):
        splits = load_data(config)
        train(config, RunDirectory(config.run_path, overwrite=True), splits)
        minutes = (time.monotonic() - started) / 60
        print(f"{number} of {len(left)} runs, {minutes:.1f} min", flush=True)


if __name__ == "__main__":
    main()
