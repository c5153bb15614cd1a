"""Settings that papers used with each method, applied by `--agent.smto.preset`.

kurin (Kurin, De Palma et al. 2022, Meta-World experiments; MT10, and MT50 where it differs):

| method                  | agent.actor_l2 | also                                                  |
|-------------------------|----------------|-------------------------------------------------------|
| unitary                 | 3e-4           |                                                       |
| pcgrad                  | 1e-4           | on the temperature too                                |
| mgda                    | 0              | task gradients l2-normalised                          |
| graddrop                | 1e-4           |                                                       |
| rlw_dirichlet, _normal  | 3e-4           |                                                       |
| imtl_g                  | 3e-4; MT50: 0  | MT10: targets clipped; MT50: all step sizes 3e-5      |

The values are the paper's. Its updates differ in scale from ours (always the mean): RLW's
weights summed to m, GradDrop was rescaled to the norm of the plain sum (about m times the mean),
MGDA's were of norm 1 at most. Adam adds the l2 term after aggregation: for the paper's balance of
loss and l2, RLW and GradDrop need agent.actor_l2 divided by the number of tasks (MGDA has none).
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from mtrl.config import Config
from mtrl.schema import ConfigError
from mtrl.smto import describe

MANY_TASKS = 50
"""From this number of tasks on, the MT50 column."""


def _kurin(num_tasks: int) -> dict[str, dict[str, Any]]:
    """{method: {key: value}}"""
    slow = dict.fromkeys(("agent.actor_lr", "agent.critic_lr", "agent.temperature_lr"), 3e-5)
    imtl_10 = {"agent.actor_l2": 3e-4, "agent.target_clip": True}
    imtl_50 = {"agent.actor_l2": 0.0, **slow}
    return {
        "unitary": {"agent.actor_l2": 3e-4},
        "pcgrad": {"agent.actor_l2": 1e-4, "agent.temperature_smto.name": "pcgrad"},
        "mgda": {"agent.actor_l2": 0.0, "agent.smto.options": {"normalisation": "l2"}},
        "graddrop": {"agent.actor_l2": 1e-4},
        "rlw_dirichlet": {"agent.actor_l2": 3e-4},
        "rlw_normal": {"agent.actor_l2": 3e-4},
        "imtl_g": imtl_10 if num_tasks < MANY_TASKS else imtl_50,
    }


def with_preset(config: Config, chosen: Config) -> Config:
    """`config` with the settings of chosen.agent.smto.preset for the method and tasks of `chosen`.

    They become plain values: the resolved configuration has them and no preset.
    """
    preset, method = chosen.agent.smto.preset, chosen.agent.smto.name
    with contextlib.suppress(ValueError):  # an unknown name is refused below
        method = describe(method).name
    if chosen.agent.critic_smto.name or chosen.agent.actor_smto.name:
        raise ConfigError(
            "agent.smto.preset", preset, "needs one method for the critic and the actor"
        )
    table = _kurin(chosen.num_tasks)
    if method not in table:
        raise ConfigError(
            "agent.smto.preset",
            preset,
            f"has no settings for method {method}; it has them for {', '.join(table)}",
        )
    if config.agent.smto.name != chosen.agent.smto.name:  # the file's options are another's
        config = _replace(config, ["agent", "smto", "options"], {})
        config = _replace(config, ["agent", "smto", "name"], chosen.agent.smto.name)
    for key, value in table[method].items():
        config = _replace(config, key.split("."), value)
    return config


def _replace(config: Any, keys: list[str], value: Any) -> Any:
    first, *rest = keys
    inner = _replace(getattr(config, first), rest, value) if rest else value
    return dataclasses.replace(config, **{first: inner})
