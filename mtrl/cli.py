"""The `mtrl` command.

Imports here stay light: simulation workers import this module again when they start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from mtrl.config import Config
    from mtrl.envs.vector import VectorEnv
    from mtrl.run_directory import RunDirectory

USAGE = """\
mtrl: multi-task reinforcement learning

  mtrl train CONFIG [--key value ...]
      train; CONFIG is a YAML file or a preset's name
  mtrl resume RUN_DIR [--train.total-steps N]
      go on from the newest checkpoint
  mtrl evaluate RUN_DIR [--checkpoint best|latest|PATH]
                        [--episodes-per-task 50] [--json]
      success rates of a trained agent
  mtrl bench CONFIG [--key value ...]
      where the time of a vector step goes here, in under a minute
  mtrl supervised CONFIG [--key value ...]
      the supervised benchmarks; CONFIG as above
  mtrl weights RUN_DIR
      an SMTO's mean weights, as a configuration for `fixed`
  mtrl list tasks|benchmarks|methods|presets

Every command explains itself with --help.
"""


class UsageError(ValueError):
    """A wrong command line."""


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    # Learner threads that spin while they wait take the cores from the simulation workers: on two
    # cores that costs 40% of the speed. Read once, when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": train_command,
        "resume": resume_command,
        "evaluate": evaluate_command,
        "bench": bench_command,
        "list": list_command,
        "supervised": supervised_command,
        "weights": weights_command,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        raise SystemExit(0 if arguments else 2)
    name, *rest = arguments
    if name == "--version":
        from mtrl import __version__

        print(f"mtrl {__version__}")
        return
    if name not in commands:
        import difflib

        close = difflib.get_close_matches(name, commands, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        _fail(f"unknown command {name!r}: allowed are {', '.join(commands)}{hint}", 2)
    try:
        commands[name](rest)
    except BrokenPipeError:
        raise SystemExit(0) from None  # `mtrl list ... | head`
    except KeyboardInterrupt:
        _exit(130)
    except Exception as error:  # sorted there; unknown ones are raised again
        _report(error)


def _report(error: Exception) -> None:
    """Known failures as one line and their exit code; anything else keeps its traceback."""
    from mtrl.checkpoint import CheckpointError
    from mtrl.envs.vector import WorkerError
    from mtrl.schema import ConfigError
    from mtrl.supervised.files import DataError
    from mtrl.train import Stopped, TrainingError

    if isinstance(error, Stopped):
        _fail(str(error), error.exit_code)
    if isinstance(error, ConfigError | UsageError | DataError):
        _fail(str(error), 2)
    if isinstance(error, WorkerError | TrainingError | CheckpointError | MemoryError | OSError):
        _fail(str(error), 1)
    raise error


def _fail(message: str, code: int) -> NoReturn:
    print(f"mtrl: {message}", file=sys.stderr)
    _exit(code)


def _exit(code: int) -> NoReturn:
    import threading

    if any(thread.name == "compilation" for thread in threading.enumerate()):
        from mtrl.compilation import exit_now

        exit_now(code)  # Python's own way out waits for the compiler
    raise SystemExit(code) from None


def _parse_run(command: str, arguments: list[str]) -> Config:
    """CONFIG [overrides] -> configuration; methods are still to be checked."""
    from mtrl.command_line import load_config, with_overrides
    from mtrl.config import Config

    if not arguments or arguments[0] in ("-h", "--help"):
        if not arguments:
            raise UsageError(
                f"{command} wants a configuration, e.g. `mtrl {command} configs/mt10.yaml`"
            )
        with_overrides(Config(), f"mtrl {command} CONFIG", ["--help"])
    name, *overrides = arguments
    if name.startswith("-"):
        raise UsageError(f"{command} wants the configuration first, not {name!r}")
    return with_overrides(load_config(name), f"mtrl {command} {name}", overrides)


def train_command(arguments: list[str]) -> None:
    config = _parse_run("train", arguments)

    from mtrl.envs.vector import make_vector_env

    with make_vector_env(config, config.train.envs_per_task) as envs:
        # The workers start meanwhile: torch alone takes seconds. What it is needed for is
        # refused before anything is written.
        from mtrl.learner import choose_device
        from mtrl.methods import check_methods
        from mtrl.run_directory import RunDirectory

        choose_device(config.learner.device)
        config = check_methods(config)
        _train(config, RunDirectory.create(config), envs, resume=False)


def bench_command(arguments: list[str]) -> None:
    config = _parse_run("bench", arguments)

    from mtrl.envs.vector import make_vector_env

    with make_vector_env(config, config.train.envs_per_task) as envs:
        from rich.console import Console

        from mtrl.bench import findings, measure, table
        from mtrl.methods import check_methods

        measured = measure(check_methods(config), envs)
    Console().print(table(config.name, measured))
    print("\n".join(findings(measured)))


def resume_command(arguments: list[str]) -> None:
    import dataclasses

    from mtrl.command_line import with_overrides
    from mtrl.envs.vector import make_vector_env
    from mtrl.run_directory import RunDirectory, write_atomically
    from mtrl.schema import ConfigError, dump_yaml, flatten

    if not arguments:
        raise UsageError("resume wants a run directory")
    if arguments[0] in ("-h", "--help"):
        print("mtrl resume RUN_DIR [--train.total-steps N]\n\nGo on from the newest checkpoint.")
        return
    name, *overrides = arguments
    if RunDirectory(Path(name)).is_supervised:
        from mtrl.supervised import command

        command.resume(arguments)
        return
    run, stored = RunDirectory.open(Path(name))
    config = with_overrides(stored, f"mtrl resume {name}", overrides)
    before = flatten(stored)
    for key, value in flatten(config).items():
        if value != before[key] and key != "train.total_steps":
            raise ConfigError(key, value, f"a resumed run keeps {key} = {before[key]!r}")
    if config.train.total_steps < stored.train.total_steps:
        raise ConfigError(
            "train.total_steps",
            config.train.total_steps,
            f"may only be raised; the run has {stored.train.total_steps}",
        )
    run.lock()
    write_atomically(run.config_file, dump_yaml(config))
    with make_vector_env(config, config.train.envs_per_task) as envs:
        from mtrl.methods import check_methods

        config = dataclasses.replace(check_methods(config), run_dir=str(run.path))
        _train(config, run, envs, resume=True)


def _train(config: Config, run: RunDirectory, envs: VectorEnv, *, resume: bool) -> None:
    from rich.console import Console

    from mtrl.recorder import success_table
    from mtrl.train import train

    result = train(config, run, envs, resume=resume)
    episodes = result.success.shape[1]
    title = f"final evaluation, {episodes} episodes per task, protocol {config.protocol_stamp}"
    Console().print(success_table(config.task_names, result, title))
    tensorboard = Path(sys.executable).parent / "tensorboard"  # works outside the environment too
    print(f"run directory: {run.path.resolve()}")
    print(f"watch it:      {tensorboard} --logdir {run.path.resolve()}")


@dataclass(frozen=True)
class EvaluateOptions:
    checkpoint: str = "best"
    """best (highest mean success while training), latest, or a checkpoint file."""
    episodes_per_task: int = 50
    """Episodes per task, each with a goal of its own; at most the run's env.num_goals are run."""
    json: bool = False
    """Print JSON to standard output instead of a table."""


def evaluate_command(arguments: list[str]) -> None:
    import tyro

    if not arguments:
        raise UsageError("evaluate wants a run directory")
    name = "RUN_DIR" if arguments[0] in ("-h", "--help") else arguments[0]
    rest = arguments if name == "RUN_DIR" else arguments[1:]
    options = tyro.cli(EvaluateOptions, prog=f"mtrl evaluate {name}", args=rest)

    from mtrl.schema import ConfigError

    if options.episodes_per_task < 1:
        raise ConfigError("episodes_per_task", options.episodes_per_task, "must be at least 1")
    _evaluate(Path(name), options)


def _evaluate(path: Path, options: EvaluateOptions) -> None:
    import json

    from rich.console import Console

    from mtrl import checkpoint
    from mtrl.agent import Agent
    from mtrl.envs.vector import make_vector_env
    from mtrl.evaluate import agent_policy, evaluate, goal_schedule
    from mtrl.learner import set_up_learner
    from mtrl.methods import check_methods
    from mtrl.recorder import evaluation_json, success_table
    from mtrl.run_directory import RunDirectory

    run, config = RunDirectory.open(path)
    config = check_methods(config)
    state: dict[str, Any] | None
    if options.checkpoint == "latest":
        state, warnings = checkpoint.load_latest(run.checkpoints)
        for warning in warnings:
            print(f"mtrl: warning: {warning}", file=sys.stderr)
        if state is None:
            raise checkpoint.CheckpointError(f"no readable checkpoint in {run.checkpoints}")
    elif options.checkpoint == "best":
        state = checkpoint.load(run.checkpoints / "best.pt")
    else:
        state = checkpoint.load(Path(options.checkpoint))
    device = set_up_learner(config)
    with make_vector_env(config) as envs:
        agent = Agent(config, envs.observation_dim, envs.action_dim, device)
        agent.load_state_dict(state["agent"])
        goals = goal_schedule(config, options.episodes_per_task)
        result = evaluate(
            agent_policy(agent), envs, goals, stop_at_success=config.evaluation.stop_at_success
        )
    step = state["step"]
    if options.json:
        extra = {
            "step": step,
            "checkpoint": options.checkpoint,
            "protocol": config.protocol_stamp,
            "method": config.method,
            "seed": config.seed,
        }
        print(json.dumps(evaluation_json(config.task_names, result, **extra), indent=1))
        return
    title = (
        f"{path}: {options.checkpoint} checkpoint at step {step:,}, {goals.shape[1]} episodes per "
        f"task, protocol {config.protocol_stamp}"
    )
    Console().print(success_table(config.task_names, result, title))


def supervised_command(arguments: list[str]) -> None:
    from mtrl.supervised import command

    if not arguments:
        raise UsageError("supervised wants a configuration, e.g. configs/supervised_digits.yaml")
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        raise UsageError(f"supervised wants the configuration first, not {arguments[0]!r}")
    command.supervised(arguments)


def weights_command(arguments: list[str]) -> None:
    from mtrl.weights import as_yaml

    if len(arguments) != 1:
        raise UsageError("weights wants a run directory, and nothing else")
    if arguments[0] in ("-h", "--help"):
        print("mtrl weights RUN_DIR\n\nAn SMTO's mean weights, as a configuration for `fixed`.")
        return
    print(as_yaml(Path(arguments[0])), end="")


def list_command(arguments: list[str]) -> None:
    from mtrl.listing import TOPICS

    if len(arguments) != 1 or arguments[0] not in TOPICS:
        if arguments and arguments[0] in ("-h", "--help"):
            print(f"mtrl list {'|'.join(TOPICS)}")
            return
        raise UsageError(f"list wants one of {', '.join(TOPICS)}, not {' '.join(arguments)!r}")
    TOPICS[arguments[0]]()
