"""`mtrl train`, `mtrl resume` and `mtrl bench`; `start` and `resume` are `mtrl.train`'s too.

The workers start before torch is imported, which takes seconds.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtrl.config import Config
from mtrl.envs.vector import make_vector_env
from mtrl.options.command_line import continued, load_config, start_options, with_overrides
from mtrl.options.command_words import HELP, Existing, split_files
from mtrl.run.callbacks import Callback
from mtrl.run.directory import RunDirectory, folder_of
from mtrl.schema import user_path

if TYPE_CHECKING:
    from mtrl.evaluation import Evaluation


def start(
    config: Config, existing: Existing, callbacks: Sequence[Callback] = ()
) -> tuple[RunDirectory, Config, Evaluation]:
    """Train; existing: what may happen to a run that is there already.

    ConfigError for what is not allowed, before anything is written; else as `train` raises.
    """
    run = RunDirectory(config.run_path, overwrite=existing.overwrite)
    if existing.resume_if_exists and run.holds_run:
        from mtrl.options.methods import check_network

        run, stored = RunDirectory.open(run.path)
        # Which makes the paths of a network's files absolute, as they are in the run.
        return resume(run, stored, check_network(config), callbacks=callbacks)
    run.check_free()
    if config.train.video_every:
        from mtrl.commands.videos import check_rendering

        check_rendering(config)
    with make_vector_env(config, config.train.envs_per_task) as envs:
        from mtrl.commands.train import train
        from mtrl.options.methods import check_methods

        config = check_methods(config)
        return run, config, train(config, run, envs, callbacks=callbacks)


def resume(
    run: RunDirectory,
    stored: Config,
    wanted: Config,
    start: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[RunDirectory, Config, Evaluation]:
    """Continue `run`, whose configuration is `stored`; start: not from the newest checkpoint, but
    from this one."""
    config = continued(stored, wanted)
    with make_vector_env(config, config.train.envs_per_task) as envs:
        from mtrl.commands.train import train
        from mtrl.device.setup import choose_device, settle
        from mtrl.options.methods import check_methods

        config = check_methods(config)
        if config.learner != stored.learner:  # another device: decided again
            config, _ = settle(config, choose_device(config.learner.device))
        result = train(config, run, envs, resume=True, start=start, callbacks=callbacks)
        return run, config, result


def train_command(words: list[str]) -> None:
    files, program, rest = split_files("train", words)
    default = load_config(*files) if files else Config()
    _show(*start(*start_options(default, program, rest)))


def resume_command(words: list[str]) -> None:
    if words[0] in HELP:
        print(RESUME_HELP, end="")
        return
    name, *overrides = words
    path = user_path(name)
    if RunDirectory(folder_of(path)).is_supervised:
        from mtrl.supervised import command

        command.resume(words)
        return
    run, stored = RunDirectory.open(path)
    wanted = with_overrides(stored, f"mtrl resume {name}", overrides)
    _show(*resume(run, stored, wanted, path if path.is_file() else None))


RESUME_HELP = """\
mtrl resume RUN [--train.total-steps N] [--learner.device D] [--plugins FILE ...]

RUN is a run's directory: continue from its newest checkpoint. Or one of its
checkpoints/step_*.pt: continue from there; later checkpoints are deleted.
On another device the run continues, but not bitwise as on the first.
Plug-ins that have moved are named again.
"""


BENCH_HELP = """\
mtrl bench CONFIG... [--key value ...]

Run the training loop of CONFIG for up to a minute, in a temporary directory that is deleted, and
say what a vector step spends its time on, on this machine: simulation, update, and the rest. Below
the table stands whether the workers or the learner bound the run, how close the update is to this
machine's rate of matrix products, and how much memory is used. Nothing is written.

CONFIG is a YAML file or a preset; the options are those of `mtrl train CONFIG --help`, for example
--learner.device cpu, --env.workers 4 or --agent.smto.name pcgrad, to compare.
"""


def bench_command(words: list[str]) -> None:
    if set(HELP) & set(words):
        print(BENCH_HELP, end="")
        return
    files, program, rest = split_files("bench", words)
    default = load_config(*files) if files else Config()
    config = with_overrides(default, program, rest)
    with make_vector_env(config, config.train.envs_per_task) as envs:
        from mtrl.commands.bench import findings, measure, table
        from mtrl.options.methods import check_methods
        from mtrl.run.console import open_console

        measured = measure(check_methods(config), envs)
    open_console().print(table(config.name, measured))
    print("\n".join(findings(measured)))


def _show(run: RunDirectory, config: Config, result: Evaluation) -> None:
    from mtrl.evaluation import success_table
    from mtrl.run.console import open_console

    episodes = result.success.shape[1]
    print(f"final evaluation, {episodes} episodes per task, protocol {config.protocol_stamp}")
    open_console().print(success_table(config.task_names, result))
    tensorboard = Path(sys.executable).parent / "tensorboard"  # works outside the environment too
    path = run.path.resolve()
    # runs/<name>/<method>/seed_<n>: from where the other runs are seen too, to compare with.
    usual = dataclasses.replace(config, run_dir="").run_path.parts
    logdir = path.parents[2] if path.parts[-3:] == usual[-3:] else path.parent
    print(f"run directory: {path}")
    print(f"watch it:      {tensorboard} --logdir {logdir}")
    print("               then http://localhost:6006/#custom_scalars")
