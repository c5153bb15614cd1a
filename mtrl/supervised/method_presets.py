"""Settings that Kurin et al. 2022 used with each method (appendix C.1), by `--smto.preset kurin`.

| method                | celeba: train.lr, l2 | cityscapes: train.l2 | options               |
|-----------------------|----------------------|----------------------|-----------------------|
| unitary               | 1e-3, 1e-3 / 40      | 1e-5 / 2             |                       |
| pcgrad                | 1e-3, 1e-3           | 1e-5                 |                       |
| imtl                  | 5e-4, 1e-3           | 1e-5                 |                       |
| mgda                  | 5e-4, 1e-4           | 0                    | normalisation=loss+   |
| graddrop              | 1e-3, 1e-4 / 40      | 0                    |                       |
| rlw_dirichlet, normal | 1e-3, 1e-4 / 40      | 0                    |                       |

Multi-MNIST: train.lr 1e-2 and no l2 for all. The paper SUMS the losses for unitary, GradDrop and
RLW; we average, and since Adam is indifferent to a loss's scale, its l2 divided by the number of
tasks gives the same updates. The others have weights of sum 1 there too.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from mtrl.schema import ConfigError
from mtrl.smto import describe
from mtrl.supervised.config import SupervisedConfig, with_smto

SUMMED = ("unitary", "graddrop", "rlw_dirichlet", "rlw_normal")
REGULARISED = ("unitary", "pcgrad", "imtl")
METHODS = (*SUMMED, "pcgrad", "imtl", "mgda")


def _kurin(problem: str, method: str, tasks: int) -> dict[str, Any]:
    """{key of `train`: value}"""
    if problem == "celeba":
        lr = 5e-4 if method in ("mgda", "imtl") else 1e-3
        l2 = 1e-3 if method in REGULARISED else 1e-4
    elif problem == "cityscapes":
        lr, l2 = 5e-4, 1e-5 if method in REGULARISED else 0.0
    elif problem == "multi_mnist":
        lr, l2 = 1e-2, 0.0
    else:
        raise ConfigError("smto.preset", "kurin", f"has no settings for problem {problem}")
    return {"lr": lr, "l2": l2 / tasks if method in SUMMED else l2}


def with_preset(config: SupervisedConfig, chosen: SupervisedConfig) -> SupervisedConfig:
    """`config` with the settings of chosen.smto.preset for the method and problem of `chosen`.

    They become plain values: the resolved configuration has them and no preset.
    """
    method = chosen.smto.name
    with contextlib.suppress(ValueError):  # an unknown name is refused below
        method = describe(method).name
    if method not in METHODS:
        raise ConfigError(
            "smto.preset",
            chosen.smto.preset,
            f"has no settings for method {method}; it has them for {', '.join(METHODS)}",
        )
    same = config.smto.name == chosen.smto.name  # else the file's options are another's
    options = config.smto.options if same else {}
    if method == "mgda":
        options = options | {"normalisation": "loss+"}
    values = _kurin(chosen.problem, method, chosen.num_tasks)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **values))
    return with_smto(config, name=chosen.smto.name, options=options)
