"""The `mtrl` command: a table of what there is, and what becomes of errors.

Imports here stay light: simulation workers import this module again when they start.
"""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from typing import NamedTuple, NoReturn


class Command(NamedTuple):
    usage: str
    """The words after its name."""
    summary: str
    function: str
    """module:function that is called with those words."""
    needs: str = ""
    """What is missing if there are none."""


RUN = "a run directory or a checkpoint"
RUNS = "run directories, or folders that hold some"
COMMANDS = {
    "train": Command(
        "CONFIG... [--resume-if-exists] [--key value ...]",
        "train; CONFIG is a YAML file or a preset; of several, later ones win",
        "mtrl.commands.launch:train_command",
        "a configuration, e.g. `mtrl train configs/mt10.yaml`",
    ),
    "resume": Command(
        "RUN [--train.total-steps N] [--learner.device D]",
        "continue from the newest checkpoint, or from the one given",
        "mtrl.commands.launch:resume_command",
        RUN,
    ),
    "evaluate": Command(
        "RUN [--checkpoint best|latest|PATH] [--episodes-per-task 50] [--json] [--video]",
        "success rates of a trained agent",
        "mtrl.commands.evaluate:evaluate_command",
        RUN,
    ),
    "bench": Command(
        "CONFIG... [--key value ...]",
        "where the time of a vector step goes here, in under a minute",
        "mtrl.commands.launch:bench_command",
        "a configuration, e.g. `mtrl bench configs/mt10.yaml`",
    ),
    "runs": Command("[DIR]", "table of the runs below DIR", "mtrl.commands.runs:runs_command"),
    "report": Command(
        "RUNS... [--out DIR] [--baseline unitary]",
        "one HTML page with figures, intervals and comparisons",
        "mtrl.report.write:report_command",
        RUNS,
    ),
    "sweep": Command(
        "CONFIG|SWEEP.yaml [--methods M ...] [--seeds 0..9] [--set key=a,b]",
        "methods x seeds x settings, on this machine or on a Ray cluster",
        "mtrl.sweep.command:sweep_command",
        "a configuration or a sweep file, e.g. `mtrl sweep mt10`",
    ),
    "tune": Command(
        "CONFIG --space SPACE.yaml [--trials N] [--parallel N] [--set key=value ...]",
        "search for the settings with the highest success, with Optuna",
        "mtrl.tune.command:tune_command",
        "a configuration, e.g. `mtrl tune mt10 --space space.yaml`",
    ),
    "supervised": Command(
        "CONFIG... [--key value ...]",
        "the supervised benchmarks; CONFIG as above",
        "mtrl.supervised.command:supervised_command",
        "a configuration, e.g. configs/supervised_digits.yaml",
    ),
    "weights": Command(
        "RUN_DIR",
        "an SMTO's mean weights, as a configuration for `fixed`",
        "mtrl.commands.fixed_weights:weights_command",
        "a run directory, and nothing else",
    ),
    "export": Command(
        "RUN [--out policy.pt2]",
        "the trained policy as a file that PyTorch loads without mtrl",
        "mtrl.commands.export:export_command",
        RUN,
    ),
    "pack": Command(
        "RUNS... [--out results]",
        "records of runs without their checkpoints, small enough to publish",
        "mtrl.commands.pack:pack_command",
        RUNS,
    ),
    "list": Command(
        "tasks|benchmarks|methods|networks|presets [--plugins FILE ...]",
        "what there is to choose from",
        "mtrl.commands.listing:list_command",
        "one of tasks, benchmarks, methods, networks, presets",
    ),
    "completion": Command(
        "bash|zsh",
        "what your shell evaluates to complete all of this",
        "mtrl.commands.completion:completion_command",
        "one of bash, zsh",
    ),
}


def usage() -> str:
    lines = ["mtrl: multi-task reinforcement learning", ""]
    for name, command in COMMANDS.items():
        first = f"  mtrl {name} "
        lines += textwrap.wrap(
            command.usage, 80, initial_indent=first, subsequent_indent=" " * len(first)
        )
        lines.append(f"      {command.summary}")
    return "\n".join(
        [
            *lines,
            "",
            "RUN is a run's directory or one of its checkpoint files.",
            "Every command explains itself with --help.",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    # Learner threads that spin for long take the cores from the simulation workers; those that
    # sleep at once are woken too late. A thousand rounds are right (docs/performance.md). Read
    # once, when torch is first imported. libgomp, which torch comes with, counts as GOMP_SPINCOUNT
    # says, but where there are more threads than cores (an evaluation has its own) not without
    # the policy.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & {*os.environ}:
        os.environ.update(OMP_WAIT_POLICY="ACTIVE", GOMP_SPINCOUNT="1000")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0 if arguments else 2)
    name, *rest = arguments
    if name == "--version":
        from mtrl import __version__

        print(f"mtrl {__version__}")
        return
    if name not in COMMANDS:
        from mtrl.schema import nearest

        allowed = f"allowed are {', '.join(COMMANDS)}{nearest(name, COMMANDS)}"
        _fail(f"unknown command {name!r}: {allowed}", 2)
    command = COMMANDS[name]
    if command.needs and not rest:
        _fail(f"{name} needs {command.needs}", 2)
    try:
        module, _, function = command.function.partition(":")
        code = getattr(importlib.import_module(module), function)(rest)
    except BrokenPipeError:
        raise SystemExit(0) from None  # `mtrl list ... | head`
    except KeyboardInterrupt:
        _exit(130)
    except Exception as error:  # sorted there; unknown ones are raised again
        _report(error)
    if code is not None:
        raise SystemExit(code)


def _report(error: Exception) -> None:
    """Known failures as one line and their exit code; anything else keeps its traceback."""
    from mtrl.device.memory import memory_error
    from mtrl.envs.rendering import RenderingError
    from mtrl.envs.vector import WorkerError
    from mtrl.run.checkpoint import CheckpointError
    from mtrl.run.stopping import Stopped, TrainingError
    from mtrl.schema import ConfigError, UsageError
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
