"""The `mtrl` command.

Imports here stay light: simulation workers import this module again when they start.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from mtrl.config import Config
    from mtrl.evaluation import Evaluation
    from mtrl.run.directory import RunDirectory

USAGE = """\
mtrl: multi-task reinforcement learning

  mtrl train CONFIG... [--resume-if-exists] [--key value ...]
      train; CONFIG is a YAML file or a preset; of several, later ones win
  mtrl resume RUN [--train.total-steps N] [--learner.device D]
      continue from the newest checkpoint, or from the one given
  mtrl evaluate RUN [--checkpoint best|latest|PATH]
                    [--episodes-per-task 50] [--json] [--video]
                    [--device D] [--plugins FILE ...]
      success rates of a trained agent
  mtrl bench CONFIG [--key value ...]
      where the time of a vector step goes here, in under a minute
  mtrl runs [DIR]
      table of the runs below DIR
  mtrl report RUNS... [--out DIR] [--baseline unitary]
      one HTML page with figures, intervals and comparisons
  mtrl sweep CONFIG|SWEEP.yaml [--methods M ...] [--seeds 0..9]
                               [--set key=a,b ...]
      methods x seeds x settings, on this machine or on a Ray cluster
  mtrl tune CONFIG --space SPACE.yaml [--trials N] [--parallel N]
                                      [--set key=value ...]
      search for the settings with the highest success, with Optuna
  mtrl supervised CONFIG [--key value ...]
      the supervised benchmarks; CONFIG as above
  mtrl weights RUN_DIR
      an SMTO's mean weights, as a configuration for `fixed`
  mtrl export RUN [--out policy.pt2] [--plugins FILE ...]
      the trained policy as a file that PyTorch loads without mtrl
  mtrl pack RUNS... [--out results]
      records of runs without their checkpoints, small enough to publish
  mtrl list tasks|benchmarks|methods|networks|presets [--plugins FILE ...]
  mtrl completion bash|zsh

RUN is a run's directory or one of its checkpoint files.
Every command explains itself with --help.
"""


BENCH_HELP = """\
mtrl bench CONFIG [--key value ...]

Run the training loop of CONFIG for up to a minute, in a temporary directory that is deleted, and
say where the time of a vector step goes on this machine: simulation, update, and the rest. Below
the table stands whether the workers or the learner bound the run, how close the update is to this
machine's rate of matrix products, and how much memory is used. Nothing is written.

CONFIG is a YAML file or a preset; the options are those of `mtrl train CONFIG --help`, for example
--learner.device cpu, --env.workers 4 or --agent.smto.name pcgrad, to compare.
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
        "runs": runs_command,
        "report": report_command,
        "sweep": sweep_command,
        "tune": tune_command,
        "supervised": supervised_command,
        "weights": weights_command,
        "export": export_command,
        "pack": pack_command,
        "list": list_command,
        "completion": completion_command,
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
    from mtrl.device.memory import memory_error
    from mtrl.envs.rendering import RenderingError
    from mtrl.envs.vector import WorkerError
    from mtrl.run.checkpoint import CheckpointError
    from mtrl.run.stopping import Stopped, TrainingError
    from mtrl.schema import ConfigError
    from mtrl.supervised.files import DataError

    if isinstance(error, Stopped):
        _fail(str(error), error.exit_code)
    if isinstance(error, ConfigError | UsageError | DataError):
        _fail(str(error), 2)
    known = WorkerError | TrainingError | CheckpointError | RenderingError | MemoryError | OSError
    if isinstance(error, known):
        _fail(str(error), 1)
    if reason := memory_error(error):
        _fail(f"the memory does not suffice: {reason}", 1)
    raise error


def _fail(message: str, code: int) -> NoReturn:
    print(f"mtrl: {message}", file=sys.stderr)
    _exit(code)


def _exit(code: int) -> NoReturn:
    import threading

    if any(thread.name == "compilation" for thread in threading.enumerate()):
        from mtrl.device.compilation import exit_now

        exit_now(code)  # Python's own way out waits for the compiler
    raise SystemExit(code) from None


Parsed = TypeVar("Parsed")


def _parse_run(
    command: str, arguments: list[str], parse: Callable[[Config, str, list[str]], Parsed]
) -> Parsed:
    """CONFIG [overrides] -> what `parse` makes of them; methods are still to be checked."""
    from mtrl.config import Config
    from mtrl.options.command_line import load_config

    if not arguments:
        raise UsageError(
            f"{command} needs a configuration, e.g. `mtrl {command} configs/mt10.yaml`"
        )
    if arguments[0] in ("-h", "--help"):
        parse(Config(), f"mtrl {command} CONFIG", ["--help"])
    if arguments[0].startswith("-"):
        raise UsageError(f"{command} needs the configuration first, not {arguments[0]!r}")
    files = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    program = " ".join(("mtrl", command, *files))
    return parse(load_config(*files), program, arguments[len(files) :])


def train_command(arguments: list[str]) -> None:
    from mtrl.commands.launch import start
    from mtrl.options.command_line import start_options

    _show(*start(*_parse_run("train", arguments, start_options)))


def bench_command(arguments: list[str]) -> None:
    from mtrl.options.command_line import with_overrides

    if {"-h", "--help"} & set(arguments):
        print(BENCH_HELP, end="")
        return
    config = _parse_run("bench", arguments, with_overrides)

    from mtrl.envs.vector import make_vector_env

    with make_vector_env(config, config.train.envs_per_task) as envs:
        from mtrl.commands.bench import findings, measure, table
        from mtrl.options.methods import check_methods
        from mtrl.run.console import open_console

        measured = measure(check_methods(config), envs)
    open_console().print(table(config.name, measured))
    print("\n".join(findings(measured)))


def resume_command(arguments: list[str]) -> None:
    from mtrl.options.command_line import with_overrides
    from mtrl.run.directory import RunDirectory
    from mtrl.schema import user_path

    if not arguments:
        raise UsageError("resume needs a run directory or a checkpoint")
    if arguments[0] in ("-h", "--help"):
        print(
            "mtrl resume RUN [--train.total-steps N] [--learner.device D] [--plugins FILE ...]\n\n"
            "RUN is a run's directory: continue from its newest checkpoint. Or one of its\n"
            "checkpoints/step_*.pt: continue from there; later checkpoints are deleted.\n"
            "On another device the run continues, but not bitwise as on the first.\n"
            "Plug-ins that have moved are named again."
        )
        return
    name, *overrides = arguments
    path = user_path(name)
    if RunDirectory(path.parent.parent if path.is_file() else path).is_supervised:
        from mtrl.supervised import command

        command.resume(arguments)
        return
    from mtrl.commands import launch

    run, stored = RunDirectory.open(path)
    wanted = with_overrides(stored, f"mtrl resume {name}", overrides)
    _show(*launch.resume(run, stored, wanted, path if path.is_file() else None))


def _show(run: RunDirectory, config: Config, result: Evaluation) -> None:
    import dataclasses

    from mtrl.evaluation import success_table
    from mtrl.run.console import open_console

    episodes = result.success.shape[1]
    title = f"final evaluation, {episodes} episodes per task, protocol {config.protocol_stamp}"
    print(title)
    open_console().print(success_table(config.task_names, result))
    tensorboard = Path(sys.executable).parent / "tensorboard"  # works outside the environment too
    path = run.path.resolve()
    # runs/<name>/<method>/seed_<n>: from where the other runs are seen too, to compare with.
    usual = dataclasses.replace(config, run_dir="").run_path.parts
    logdir = path.parents[2] if path.parts[-3:] == usual[-3:] else path.parent
    print(f"run directory: {path}")
    print(f"watch it:      {tensorboard} --logdir {logdir}")
    print("               then http://localhost:6006/#custom_scalars")


def evaluate_command(arguments: list[str]) -> None:
    from mtrl.commands import evaluate

    if not arguments:
        raise UsageError("evaluate needs a run directory or a checkpoint")
    evaluate.evaluate_command(arguments)


def export_command(arguments: list[str]) -> None:
    from mtrl.commands import export

    if not arguments:
        raise UsageError("export needs a run directory or a checkpoint")
    export.export_command(arguments)


def pack_command(arguments: list[str]) -> None:
    from mtrl.commands import pack

    if not arguments:
        raise UsageError("pack needs run directories, or folders that hold some")
    pack.pack_command(arguments)


def completion_command(arguments: list[str]) -> None:
    import re

    from mtrl.commands.completion import SHELLS, script

    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise UsageError(f"completion needs one of {', '.join(SHELLS)}")
    commands = dict.fromkeys(re.findall(r"^  mtrl (\w+)", USAGE, re.MULTILINE))
    print(script(arguments[0], list(commands)), end="")


def runs_command(arguments: list[str]) -> None:
    from mtrl.commands import runs

    runs.runs_command(arguments)


def report_command(arguments: list[str]) -> None:
    from mtrl.report import write

    if not arguments:
        raise UsageError("report needs run directories, or folders that hold some")
    write.report_command(arguments)


def sweep_command(arguments: list[str]) -> None:
    if not arguments:
        raise UsageError("sweep needs a configuration or a sweep file, e.g. `mtrl sweep mt10`")
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        raise UsageError(f"sweep needs the configuration first, not {arguments[0]!r}")

    from mtrl.sweep.command import sweep

    raise SystemExit(sweep(arguments))


def tune_command(arguments: list[str]) -> None:
    if not arguments:
        raise UsageError("tune needs a configuration, e.g. `mtrl tune mt10 --space space.yaml`")
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        raise UsageError(f"tune needs the configuration first, not {arguments[0]!r}")

    from mtrl.tune.command import tune

    raise SystemExit(tune(arguments))


def supervised_command(arguments: list[str]) -> None:
    from mtrl.supervised import command

    if not arguments:
        raise UsageError("supervised needs a configuration, e.g. configs/supervised_digits.yaml")
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        raise UsageError(f"supervised needs the configuration first, not {arguments[0]!r}")
    command.supervised(arguments)


def weights_command(arguments: list[str]) -> None:
    from mtrl.commands.fixed_weights import as_yaml
    from mtrl.schema import user_path

    if len(arguments) != 1:
        raise UsageError("weights needs a run directory, and nothing else")
    if arguments[0] in ("-h", "--help"):
        print("mtrl weights RUN_DIR\n\nAn SMTO's mean weights, as a configuration for `fixed`.")
        return
    print(as_yaml(user_path(arguments[0])), end="")


def list_command(arguments: list[str]) -> None:
    from mtrl.commands.listing import TOPICS, list_command

    if not arguments or arguments[0] not in (*TOPICS, "-h", "--help"):
        raise UsageError(f"list needs one of {', '.join(TOPICS)}, not {' '.join(arguments)!r}")
    list_command(arguments)
