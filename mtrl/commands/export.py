"""`mtrl export`: the trained policy as a file that PyTorch loads without mtrl."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from mtrl.options.command_words import read_options
from mtrl.schema import ConfigError


@dataclass(frozen=True)
class ExportOptions:
    run: tyro.conf.Positional[Path]
    """A run directory, or one of its checkpoint files."""
    out: Path = Path("policy.pt2")
    """File to write."""
    checkpoint: str = "best"
    """best (highest mean success while training), latest, or a checkpoint file."""
    plugins: tuple[str, ...] = ()
    """The run's plug-ins, if they have moved; only the one that registers its network."""


def export_command(words: list[str]) -> None:
    options = read_options(ExportOptions, "mtrl export", words, bare="run")

    from mtrl.commands.trained import open_trained, with_plugins
    from mtrl.networks.exported import export_policy

    out = options.out
    if out.is_dir():
        raise ConfigError("out", str(out), f"is a folder; name a file, e.g. {out / 'policy.pt2'}")
    if blocking := next((folder for folder in out.parents if folder.is_file()), None):
        raise ConfigError("out", str(out), f"{blocking} is a file, not a folder")
    trained = open_trained(options.run, options.checkpoint)
    config = with_plugins(trained.config, options.plugins, environments=False)
    export_policy(trained.policy(*trained.dimensions), config, *trained.dimensions, out)
    print(f"{out}: policy of {options.run} at step {trained.step:,}, for {config.num_tasks} tasks")
