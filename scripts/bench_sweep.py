"""What an engine of `mtrl sweep` costs on top of bare `mtrl train`: the same run with each.

    python scripts/bench_sweep.py                                   # quickstart, 33,000 steps
    python scripts/bench_sweep.py --config toy --steps 4000 --turns 1
    python scripts/bench_sweep.py --markdown docs/sweeps.md

Engines take turns, so that a busy machine slows them alike; medians over the turns. `outside`: wall
time that the run itself does not count as training: start, imports, final evaluation, end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from marked_table import replace_table


def commands(config: str, steps: int, cores: int, folder: Path) -> dict[str, list[str]]:
    """{engine: what follows `mtrl`}; each leaves its run in folder/<engine>."""
    grid = ["sweep", config, "--methods", "unitary", "--seeds", "1", "--no-estimate"]
    grid += ["--cpus-per-run", str(cores), "--set", f"train.total_steps={steps}"]
    # The sweep's own configuration, in which workers and threads are decided.
    written = folder / "local" / Path(config).stem / "sweep/unitary/seed_1.yaml"
    return {
        "local": [*grid, "--root", str(folder / "local")],
        "bare": ["train", str(written), "--run-dir", str(folder / "bare")],
        "ray": [*grid, "--root", str(folder / "ray"), "--engine", "ray"],
    }


def measure(words: list[str], folder: Path) -> tuple[float, float, float]:
    """Wall seconds, of them outside the loop, and environment steps per second in it."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "mtrl", *words], capture_output=True, text=True)
    wall = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"mtrl {' '.join(words)}\n{done.stdout}{done.stderr}")
    status = json.loads(next(folder.glob("**/status.json")).read_text())
    return wall, wall - status["elapsed_s"], status["step"] / status["elapsed_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--steps", type=int, default=33_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--markdown", type=Path, help="file with the marked place for the table")
    options = parser.parse_args()
    seen: dict[str, list[tuple[float, float, float]]] = {}
    for turn in range(options.turns):
        with tempfile.TemporaryDirectory() as name:
            lines = commands(options.config, options.steps, options.cores, Path(name))
            for engine, words in lines.items():
                seen.setdefault(engine, []).append(measure(words, Path(name) / engine))
                figures = "{:.1f} s, {:.1f} s outside, {:.0f} env steps/s".format(*seen[engine][-1])
                print(f"turn {turn + 1}, {engine}: {figures}", flush=True)
    table = ["| engine | wall, s | outside the loop, s | env steps/s |", "|---" * 4 + "|"]
    for engine, rows in seen.items():
        wall, outside, rate = map(statistics.median, zip(*rows, strict=True))
        table.append(f"| {engine} | {wall:.1f} | {outside:.1f} | {rate:.0f} |")
    text = (
        f"`{options.config}`, {options.steps:,} environment steps, {options.cores} cores, "
        f"{options.turns} turns.\n\n" + "\n".join(table)
    )
    print(text)
    if options.markdown:
        replace_table(options.markdown, "bench_sweep", text)


if __name__ == "__main__":
    main()
