"""What an engine of `mtrl sweep` costs on top of bare `mtrl train`: the same run with each.

    python bench/sweep.py                                   # quickstart, 33,000 steps
    python bench/sweep.py --config toy --steps 4000 --turns 1
    python bench/sweep.py --markdown docs/sweeps.md

Engines take turns, so that a busy machine slows them alike; medians over the turns. `outside`: wall
time that the run itself does not count as training: start, imports, final evaluation, end.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import make_parser, run
from mtrl.report.markdown import Table


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
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--steps", type=int, default=33_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    seen: dict[str, list[tuple[float, float, float]]] = {}
    for turn in range(options.turns):
        with tempfile.TemporaryDirectory() as name:
            lines = commands(options.config, options.steps, options.cores, Path(name))
            for engine, words in lines.items():
                seen.setdefault(engine, []).append(measure(words, Path(name) / engine))
                figures = "{:.1f} s, {:.1f} s outside, {:.0f} env steps/s".format(*seen[engine][-1])
                print(f"turn {turn + 1}, {engine}: {figures}", flush=True)
    intro = (
        f"`{options.config}`, {options.steps:,} environment steps, {options.cores} cores, "
        f"{options.turns} turns."
    )
    table = Table("engine", "wall, s", "outside the loop, s", "env steps/s", intro=intro)
    for engine, rows in seen.items():
        wall, outside, rate = map(statistics.median, zip(*rows, strict=True))
        table.add(engine, f"{wall:.1f}", f"{outside:.1f}", f"{rate:.0f}")
    table.publish(options.markdown, options.csv)


if __name__ == "__main__":
    run(main)
