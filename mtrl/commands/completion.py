"""`mtrl completion`: what a shell offers after `mtrl`."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from mtrl.commands.evaluate import EvaluateOptions
from mtrl.commands.export import ExportOptions
from mtrl.commands.listing import TOPICS
from mtrl.commands.main import COMMANDS
from mtrl.commands.pack import PackOptions
from mtrl.config import Config
from mtrl.config.benchmarks import BENCHMARKS, all_tasks
from mtrl.networks import available_networks
from mtrl.options.command_line import presets
from mtrl.options.command_words import Existing
from mtrl.report.write import ReportOptions
from mtrl.schema import UsageError, types_of
from mtrl.smto import available
from mtrl.supervised.config import SupervisedConfig
from mtrl.sweep.options import SweepOptions
from mtrl.tune.command import TuneOptions

SHELLS = ("bash", "zsh")
RESUME = ("train.total_steps", "learner.device", "plugins")

BASH = """\
_mtrl() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} words= option= i
    for ((i = COMP_CWORD - 1; i > 1; i--)); do
        [[ ${{COMP_WORDS[i]}} == --* ]] && {{ option=${{COMP_WORDS[i]//_/-}}; break; }}
    done
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    elif [[ $word == -* ]]; then
        case $command in
{options}
        esac
    elif [ -n "$option" ]; then
        case $command:$option in
{values}
        esac
    else
        case $command in
{first}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _mtrl mtrl
"""


def completion_command(words: list[str]) -> None:
    if len(words) != 1 or words[0] not in SHELLS:
        raise UsageError(f"completion needs one of {', '.join(SHELLS)}")
    print(script(words[0]), end="")


def script(shell: str) -> str:
    """To be evaluated by `shell`; file names complete wherever nothing else does."""
    training = types_of(Config)
    kinds: dict[str, Mapping[str, Any]] = {
        "train": training | types_of(Existing),
        "bench": training,
        "resume": {key: training[key] for key in RESUME},
        "supervised": types_of(SupervisedConfig) | types_of(Existing),
        "sweep": types_of(SweepOptions),
        "tune": types_of(TuneOptions),
        "evaluate": types_of(EvaluateOptions),
        "export": types_of(ExportOptions),
        "pack": types_of(PackOptions),
        "report": types_of(ReportOptions),
    }
    names = list(presets())
    files = [name for name in names if not name.startswith(("supervised", "gama"))]
    first = {
        **dict.fromkeys(("train", "bench", "sweep", "tune"), files),
        "supervised": [name for name in names if name not in files or name.startswith("kurin/")],
        "list": list(TOPICS),
        "completion": list(SHELLS),
    }
    bash = BASH.format(
        commands=" ".join(COMMANDS),
        options=_cases({name: map(_option, keys) for name, keys in kinds.items()}),
        values=_cases(
            {
                f"{name}:{_option(key)}": values
                for name, keys in kinds.items()
                for key, kind in keys.items()
                if (values := list(_values(key, kind)))
            }
        ),
        first=_cases(first),
    )
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash}" if shell == "zsh" else bash


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _cases(words: Mapping[str, Iterable[str]]) -> str:
    return "\n".join(f'            {case}) words="{" ".join(w)}" ;;' for case, w in words.items())


def _values(key: str, kind: Any) -> Iterable[str]:
    """What an option takes, where that is a list of words."""
    if key.endswith("smto.name") or key == "methods":
        return available()
    known: dict[str, Iterable[str]] = {
        "network.architecture": available_networks(),
        "env.benchmark": BENCHMARKS,
        "env.tasks": all_tasks(),
        "checkpoint": ("best", "latest"),
    }
    if key in known:
        return known[key]
    if kind is bool:
        return ("true", "false")
    options = [kind, *typing.get_args(kind)]
    literals = [option for option in options if typing.get_origin(option) is Literal]
    return [str(word) for option in literals for word in typing.get_args(option) if word]
