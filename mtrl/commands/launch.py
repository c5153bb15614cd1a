"""Start or continue a run: what `mtrl train`, `mtrl resume` and `mtrl.train` have in common.

The workers start before torch is imported, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtrl.config import Config
from mtrl.envs.vector import make_vector_env
from mtrl.options.command_line import continued
from mtrl.options.command_words import Existing
from mtrl.run.callbacks import Callback
from mtrl.run.directory import RunDirectory

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
        run, stored = RunDirectory.open(run.path)
        return resume(run, stored, config, callbacks=callbacks)
    run.check_free()
    if config.train.video_every:
        from mtrl.videos import check_rendering

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
