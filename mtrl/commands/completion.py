"""`mtrl completion`: what a shell offers after `mtrl`."""

from __future__ import annotations

from collections.abc import Sequence

from mtrl.commands.listing import TOPICS
from mtrl.config import Config
from mtrl.options.command_line import presets
from mtrl.options.command_words import Existing
from mtrl.schema import flatten

SHELLS = ("bash", "zsh")

BASH = """\
_mtrl() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} words=
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    elif [[ $word == -* ]]; then
        case $command in
            train) words="{options}" ;;
            resume) words="--train.total-steps --learner.device --plugins" ;;
            evaluate)
                words="--checkpoint --episodes-per-task --json --video"
                words+=" --video-size --video-camera --video-episodes --device --plugins" ;;
            export) words="--out --checkpoint --plugins" ;;
        esac
    elif [ "$COMP_CWORD" -eq 2 ]; then
        case $command in
            train) words="{presets}" ;;
            list) words="{topics}" ;;
            completion) words="{shells}" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _mtrl mtrl
"""


def script(shell: str, commands: Sequence[str]) -> str:
    """To be evaluated by `shell`; file names complete wherever nothing else does."""
    options = flatten(Config()) | flatten(Existing())
    bash = BASH.format(
        commands=" ".join(commands),
        options=" ".join(f"--{key.replace('_', '-')}" for key in options),
        presets=" ".join(sorted(presets())),
        topics=" ".join(TOPICS),
        shells=" ".join(SHELLS),
    )
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash}" if shell == "zsh" else bash
