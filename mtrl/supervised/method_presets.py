"""Settings that papers used with each method, by `--smto.preset kurin | gama`.

kurin (Kurin, De Palma et al. 2022, appendix C.1):

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

gama (Gama & Grassi 2025, the best settings in their code's scripts): `_GAMA` below, with lr_decay
0.95 and no l2. Their losses are averaged, as ours. Their Auto-Lambda weights start at 0.1, ours at
1/m: its step size is scaled alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, NamedTuple

from mtrl.schema import ConfigError
from mtrl.smto import describe
from mtrl.supervised import methods
from mtrl.supervised.config import SupervisedConfig, with_smto

Settings = dict[str, dict[str, Any]]
"""{section: {key: value}}"""

SUMMED = ("unitary", "graddrop", "rlw_dirichlet", "rlw_normal")
REGULARISED = ("unitary", "pcgrad", "imtl")
KURIN = (*SUMMED, "pcgrad", "imtl", "mgda")


def _kurin(problem: str, method: str, tasks: int) -> Settings:
    if method not in KURIN:
        raise _no_method("kurin", method, KURIN)
    if problem == "celeba":
        lr = 5e-4 if method in ("mgda", "imtl") else 1e-3
        l2 = 1e-3 if method in REGULARISED else 1e-4
    elif problem == "cityscapes":
        lr, l2 = 5e-4, 1e-5 if method in REGULARISED else 0.0
    elif problem == "multi_mnist":
        lr, l2 = 1e-2, 0.0
    else:
        raise _no_problem("kurin", problem)
    options = {"normalisation": "loss+"} if method == "mgda" else {}
    l2 = l2 / tasks if method in SUMMED else l2
    return {"train": {"lr": lr, "l2": l2}, "smto": {"options": options}}


class _Row(NamedTuple):
    lr: float
    dropout: float = 0.0
    own: float | None = None
    """The method's own number: `_OWN`."""


_OWN = {"cagrad": "c", "cdtt": "alpha", "famo": "decay", "auto_lambda": "lr"}
"""What it is called; auto_lambda's, as rotograd.lr, in units of train.lr."""
_PLAIN = ("unitary", "edm", "imtl", "nash_mtl")

_GAMA: dict[str, dict[str, _Row]] = {
    "multi_mnist_cl_cr": {
        "unitary": _Row(0.0025, 0.3),
        "auto_lambda": _Row(0.005, 0.3, 0.1),
        "cagrad": _Row(0.0025, 0.3, 0.2),
        "cdtt": _Row(0.005, 0.2, 0.6),
        "edm": _Row(0.005, 0.2),
        "famo": _Row(0.0025, 0.2, 1e-3),
        "imtl": _Row(0.0025, 0.3),
        "nash_mtl": _Row(0.0025, 0.3),
        "rotograd": _Row(0.005, 0.3, 0.1),
    },
    "multi_mnist_cl_rr": {
        **dict.fromkeys((*_PLAIN, "graddrop", "mgda", "pcgrad"), _Row(0.001)),
        **dict.fromkeys(("rlw_normal", "rlw_dirichlet", "si", "uw"), _Row(0.001)),
        "auto_lambda": _Row(0.001, 0.0, 100.0),
        "cagrad": _Row(0.001, 0.0, 0.8),
        "cdtt": _Row(0.0025, 0.0, 0.2),
        "famo": _Row(0.0025, 0.0, 1e-4),
        "rotograd": _Row(0.001, 0.0, 0.1),
    },
    "multi_mnist_rl_rr": {
        **dict.fromkeys(_PLAIN, _Row(0.001)),
        "auto_lambda": _Row(0.001, 0.0, 100.0),
        "cagrad": _Row(0.0025, 0.0, 0.5),
        "cdtt": _Row(0.001, 0.0, 1.0),
        "famo": _Row(0.001, 0.0, 1e-4),
        "rotograd": _Row(0.001, 0.0, 0.1),
    },
    "cityscapes_19_instances": {
        **dict.fromkeys(_PLAIN, _Row(0.001)),
        "auto_lambda": _Row(0.001, 0.0, 1e-4),
        "cagrad": _Row(0.001, 0.0, 0.2),
        "cdtt": _Row(0.001, 0.0, 0.2),
        "famo": _Row(0.001, 0.0, 0.01),
        "rotograd": _Row(0.001, 0.0, 1.0),
    },
    "qm9": {
        "unitary": _Row(0.005),
        "auto_lambda": _Row(0.001, 0.0, 10.0),
        "cagrad": _Row(0.001, 0.0, 0.8),
        "cdtt": _Row(0.001, 0.0, 1.0),
        "edm": _Row(0.001),
        "famo": _Row(0.005, 0.0, 1e-4),
        "imtl": _Row(0.0005),
        "nash_mtl": _Row(0.001),
        "rotograd": _Row(0.001, 0.0, 0.1),
    },
}


def _gama(problem: str, method: str, tasks: int) -> Settings:
    table = _GAMA.get("multi_mnist_cl_cr" if problem == "multi_mnist" else problem)
    if table is None:
        raise _no_problem("gama", problem)
    if method not in table:
        raise _no_method("gama", method, table)
    lr, dropout, own = table[method]
    city, qm9 = problem.startswith("cityscapes"), problem == "qm9"
    settings: Settings = {
        "train": {
            "lr": lr,
            "lr_decay": 0.95,
            "l2": 1e-4 if city and method != "rotograd" else 0.0,
            "batch_size": 32 if city else 120 if qm9 else 256,
            "epochs": 150 if city else 300 if qm9 else 100,
        },
        "network": {"dropout": "published" if qm9 else dropout}
        | ({"encoder": "resnet18"} if city else {}),
        "smto": {"options": {}},
    }
    if method == "rotograd":
        settings["rotograd"] = {"lr": own}
    elif own is not None:
        scale = lr / tasks / 0.1 if method == "auto_lambda" else 1.0
        settings["smto"]["options"] = {_OWN[method]: own * scale}
    if method == "cagrad":
        settings["smto"]["options"] |= {"rescale": 1}
    if method == "mgda":
        settings["smto"]["options"] = {"normalisation": "loss+"}
    return settings


PRESETS = {"kurin": _kurin, "gama": _gama}


def with_preset(config: SupervisedConfig, chosen: SupervisedConfig) -> SupervisedConfig:
    """`config` with the settings of chosen.smto.preset for the method and problem of `chosen`.

    They become plain values: the resolved configuration has them and no preset.
    """
    method = chosen.smto.name
    with contextlib.suppress(ValueError):  # an unknown name is refused below
        method = method if method in methods.OWN else describe(method).name
    if chosen.rotograd.enabled:
        method = "rotograd" if method == "unitary" else chosen.method
    settings = PRESETS[chosen.smto.preset](chosen.problem, method, chosen.num_tasks)
    same = config.smto.name == chosen.smto.name  # else the file's options are another's
    options = (config.smto.options if same else {}) | settings.pop("smto")["options"]
    for section, values in settings.items():
        changed = dataclasses.replace(getattr(config, section), **values)
        config = dataclasses.replace(config, **{section: changed})
    return with_smto(config, name=chosen.smto.name, options=options)


def _no_problem(preset: str, problem: str) -> ConfigError:
    return ConfigError("smto.preset", preset, f"has no settings for problem {problem}")


def _no_method(preset: str, method: str, known: Any) -> ConfigError:
    allowed = f"has no settings for method {method}; it has them for {', '.join(known)}"
    return ConfigError("smto.preset", preset, allowed)
