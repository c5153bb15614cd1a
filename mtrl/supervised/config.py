"""Every option of a supervised run; the docstring under each field is its help text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from mtrl import config as shared
from mtrl.options.methods import check_method
from mtrl.options.validation import check_seed, check_weight_decay
from mtrl.run.sinks import check_sinks
from mtrl.schema import (
    NOT_NEGATIVE,
    OFF_OR_POSITIVE,
    POSITIVE,
    ConfigError,
    at_least,
    build,
    check_bounds,
    flatten,
    nearest,
    read_yaml,
    user_path,
    within,
)
from mtrl.smto import describe
from mtrl.supervised import methods

ProblemName = Literal[
    "digits",
    "multi_mnist",
    "multi_mnist_cl_rr",
    "multi_mnist_cl_cr",
    "multi_mnist_rl_rr",
    "celeba",
    "cityscapes",
    "cityscapes_19",
    "cityscapes_19_instances",
    "nyuv2",
    "qm9",
]
PROBLEMS: tuple[str, ...] = get_args(ProblemName)
CELEBA_ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs",
    "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows",
    "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup",
    "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard",
    "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns",
    "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat",
    "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip
QM9_TARGETS = (
    "mu", "alpha", "homo", "lumo", "r2", "zpve", "u0_atom", "u_atom", "h_atom", "g_atom", "cv",
)  # fmt: skip
Z_METHODS = ("mgda", "imtl", "imtl_g", "graddrop", "graddrop_random")
"""Published on the gradients of the last shared activation."""


@dataclass(frozen=True)
class TrainConfig:
    """The optimiser, its regularisation and its length."""

    epochs: Annotated[int, at_least(1)] = 100
    """Passes over the training split."""
    batch_size: Annotated[int, at_least(1)] = 256
    """Samples per iteration; the incomplete batch at an epoch's end is left out."""
    lr: Annotated[float, POSITIVE] = 1e-3
    """Step size of encoder and heads."""
    lr_decay: Annotated[float, within("(0, 1]")] = 1.0
    """The step size is multiplied by this after every epoch (Kurin et al.: 0.95); 1 = constant."""
    lr_decay_every: Annotated[int, at_least(1)] = 1
    """Epochs from one such multiplication to the next (NYUv2's papers: 100, by 0.5)."""
    lr_patience: Annotated[int, OFF_OR_POSITIVE] = 0
    """Multiply only after more than so many epochs in a row without a better validation score
    (QM9's papers: 5, by 0.7); 0 = after every lr_decay_every epochs."""
    lr_min: Annotated[float, NOT_NEGATIVE] = 0.0
    """The step size falls no further (QM9's papers: 1e-5)."""
    reference: dict[str, Any] = field(default_factory=dict)
    """Validation scores of single tasks, e.g. accuracy/classify_left=0.97 mse/reconstruct_right=0.4
    (scripts/compare_supervised.py --reference writes them). One model is kept and tested: the one
    with the best Delta_m against them (Gama & Grassi 2025). Empty: the best mean, or one model for
    every metric where the tasks have different ones (Kurin et al. 2022)."""
    optimizer: Literal["adam", "adamw", "sgd", "muon"] = "adam"
    """Optimiser of encoder and heads, with which the SMTO's direction is applied. muon: for weight
    matrices and kernels, with AdamW for all else (Jordan et al. 2024)."""
    betas: Annotated[tuple[float, float], within("[0, 1)")] = (0.9, 0.999)
    """Decay rates of Adam's and AdamW's two moments; the first is also the momentum of SGD and
    Muon."""
    l2: Annotated[float, NOT_NEGATIVE] = 0.0
    """l2 regularisation: coupled weight decay of Adam and SGD. It meets the MEAN of the task
    losses: a published strength for their sum is to be divided by the number of tasks."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    """Decoupled weight decay, with adamw and muon; per unit of the step size."""
    augment: bool = False
    """Cityscapes: turn training images by up to 10 degrees (Gama & Grassi); NYUv2: enlarge a part
    of them (CAGrad, Nash-MTL, FAMO); both: mirror half of them."""


@dataclass(frozen=True)
class NetworkConfig:
    """The published network of the problem."""

    dropout: Annotated[float | Literal["published"], within("[0, 1)")] = "published"
    """Rate of every dropout layer; 0 = none (the ablation of Kurin et al., 5.1).
    published: theirs, 0.5 (CelebA: 0.25 after the stem). On multi_mnist theirs drops the same
    channels for a whole batch, and scales nothing up; a number is PyTorch's own dropout."""
    encoder: Literal["resnet50", "resnet18", "segnet", "segnet_mtan"] = "resnet50"
    """Encoder of cityscapes and nyuv2. With DeepLab heads: resnet50 (Kurin et al., LibMTL) or
    resnet18 (Gama & Grassi). MTAN's: segnet, or segnet_mtan with its attention (CAGrad, Nash-MTL,
    FAMO)."""
    weights: str = ""
    """File with an ImageNet encoder (a torchvision state dictionary) that a resnet starts from, for
    cityscapes and nyuv2; nothing is ever downloaded. Empty = random."""


@dataclass(frozen=True)
class SmtoConfig:
    """The multi-task optimiser."""

    name: str = "unitary"
    """Multi-task optimiser; see `mtrl list methods`."""
    options: dict[str, Any] = field(default_factory=dict)
    """The method's own options, e.g. c=0.4; on top of the file's for the same method."""
    gradient_space: Literal["auto", "parameters", "representation"] = "auto"
    """Task gradients on the shared parameters, or on the last shared activation z, followed by one
    backward of the encoder; auto = as published (z for MGDA, IMTL, GradDrop)."""
    chunk_size: Annotated[int, at_least(1)] = 1
    """Tasks per backward pass of the encoder, in parameter space. More saves launches (small
    networks on a GPU) and costs memory: their activation gradients exist at once."""
    gradient_samples: int = 0
    """Samples of a batch on whose task gradients a method decides that takes a Gramian on the
    parameters; its weights then serve the whole batch. 0 = all. See docs/supervised.md."""


@dataclass(frozen=True)
class RotoGradConfig:
    """RotoGrad (Javaloy & Valera 2022), around the representation; for every method."""

    enabled: bool = False
    """Rotate the shared representation for each task, and give the task gradients there equal
    magnitudes. With the method unitary: RotoGrad as published."""
    lr: Annotated[float, POSITIVE] = 0.1
    """Step size of the rotations' own Adam, in units of train.lr; follows train.lr_decay."""
    size: Annotated[int, at_least(0, "zero (all) or positive")] = 0
    """Channels of the representation that are rotated, the first ones; 0 = all. A rotation takes
    4 * size^2 * 4 bytes for each task, and size^3 operations."""


@dataclass(frozen=True)
class CheckpointConfig(shared.CheckpointConfig):
    """Checkpoints."""

    every: Annotated[int, at_least(1)] = 1
    """Epochs between checkpoints; the last epoch and a signal save too."""


@dataclass(frozen=True)
class LoggingConfig(shared.LoggingConfig):
    """metrics.jsonl, TensorBoard and console."""

    every: Annotated[int, at_least(1)] = 100
    """Iterations between two log lines (losses, weights, speed)."""


@dataclass(frozen=True)
class DiagnosticsConfig(shared.DiagnosticsConfig):
    """Gradient conflict metrics on the shared parameters."""

    every: Annotated[int, OFF_OR_POSITIVE] = 100
    """Iterations between two diagnostic updates, on all task gradients, whatever the method (both
    papers: 100); 0 = off. One costs a backward of the encoder per task."""


@dataclass(frozen=True)
class SupervisedConfig:
    """One supervised run."""

    problem: ProblemName = "digits"
    """Data, tasks, network and metrics, as published; digits needs no files."""
    tasks: tuple[str, ...] = ()
    """Train these of the problem's tasks; empty = all. One alone is a single-task baseline."""
    name: str = ""
    """Name of the experiment; the preset's file name if empty."""
    seed: int = 1
    """Seed of initial weights, batches, dropout and method. The data do not depend on it."""
    data_dir: str = ""
    """Folder of the official files; MTRL_DATA if empty. See docs/supervised.md."""
    run_dir: str = ""
    """Where the run is written; runs/<name>/<method>/seed_<seed> if empty."""
    plugins: tuple[str, ...] = ()
    """Python files that register methods of your own; see docs/smto.md."""
    train: TrainConfig = field(default_factory=TrainConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    smto: SmtoConfig = field(default_factory=SmtoConfig)
    rotograd: RotoGradConfig = field(default_factory=RotoGradConfig)
    learner: shared.DeviceConfig = field(default_factory=shared.DeviceConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)

    @property
    def task_names(self) -> tuple[str, ...]:
        """What is trained, in the problem's order."""
        return tuple(name for name in self.problem_tasks if name in self.tasks or not self.tasks)

    @property
    def problem_tasks(self) -> tuple[str, ...]:
        """All tasks of the problem, in the order of the stored targets."""
        if self.problem == "celeba":
            return CELEBA_ATTRIBUTES
        if self.problem == "qm9":
            return QM9_TARGETS
        if self.problem == "nyuv2":
            return "segmentation", "depth", "normals"
        if self.problem.startswith("cityscapes"):
            tasks = ("segmentation", "depth")
            return (*tasks, "instance_centres") if "instances" in self.problem else tasks
        kinds = self.problem.removeprefix("multi_mnist_").split("_")
        if kinds[0] not in ("cl", "rl"):
            kinds = ["cl", "cr"]
        words = {"c": "classify", "r": "reconstruct", "l": "left"}
        return tuple(f"{words[k[0]]}_{'left' if k[1] == 'l' else 'right'}" for k in kinds)

    @property
    def num_tasks(self) -> int:
        return len(self.task_names)

    @property
    def is_dense(self) -> bool:
        """Whether every pixel has targets: the problems that `network.encoder` is for."""
        return self.problem.startswith(("cityscapes", "nyuv2"))

    @property
    def starts_from_imagenet(self) -> bool:
        """As published."""
        return self.is_dense and self.network.encoder.startswith("resnet")

    @property
    def has_own_features(self) -> bool:
        """Whether every task has channels of z of its own, so that z is nothing they share."""
        return self.is_dense and self.network.encoder == "segnet_mtan"

    @property
    def gradient_space(self) -> Literal["parameters", "representation"]:
        if self.smto.gradient_space != "auto":
            return self.smto.gradient_space
        if self.has_own_features:
            return "parameters"
        name = describe(methods.find(self.smto.name)).name
        return "representation" if name in Z_METHODS else "parameters"

    @property
    def method(self) -> str:
        """Name for paths and tables, e.g. `pcgrad`, or `unitary+rotograd`."""
        return f"{self.smto.name}+rotograd" if self.rotograd.enabled else self.smto.name

    @property
    def run_path(self) -> Path:
        if self.run_dir:
            return user_path(self.run_dir)
        method = self.method
        if self.tasks:
            few = len(self.tasks) <= 3
            method += "_" + ("+".join(self.task_names) if few else f"{len(self.tasks)}_tasks")
        return Path("runs") / (self.name or self.problem) / method / f"seed_{self.seed}"

    @property
    def protocol_stamp(self) -> str:
        return f"supervised {self.problem}"


OF_RL = {"protocol", "env", "replay", "agent", "critic"}
"""Keys that only a configuration of `mtrl train` has."""


def load_yaml(path: Path) -> SupervisedConfig:
    """Read a configuration; missing keys take the defaults, unknown or ill-typed ones raise."""
    content = read_yaml(path)
    if isinstance(content, dict) and "problem" not in content and OF_RL & content.keys():
        raise ConfigError("CONFIG", str(path), "is for `mtrl train`, not a supervised benchmark")
    config: SupervisedConfig = build(SupervisedConfig, content)
    return config


def validate(config: SupervisedConfig) -> None:
    """Raise ConfigError at the first impossible value."""
    check_bounds(config)
    values = flatten(config)

    def need(condition: bool, key: str, allowed: str) -> None:
        if not condition:
            raise ConfigError(key, values[key], allowed)

    for task in config.tasks:
        known = config.problem_tasks
        allowed = f"unknown task {task!r}, must be one of {', '.join(known)}{nearest(task, known)}"
        need(task in known, "tasks", allowed)
    need(len(set(config.tasks)) == len(config.tasks), "tasks", "each task may stand only once")
    need(
        not config.train.augment or config.is_dense,
        "train.augment",
        "is for cityscapes and nyuv2 alone; the others were published without",
    )
    train = config.train
    check_weight_decay("train.", train.optimizer, "l2", train.l2, train.weight_decay)
    check_seed(config.seed)
    _check_network(config, need)
    check_method(
        config.smto.name,
        config.smto.options,
        "smto.name",
        "smto.options",
        config.num_tasks,
        1_000_000,  # the length, which depends on the data, is not known yet
        methods.OWN,
    )
    _check_gradient_samples(config, need)
    check_sinks(config.logging)


Need = Callable[[bool, str, str], None]
"""(what must hold, key, what is allowed)"""


def _check_network(config: SupervisedConfig, need: Need) -> None:
    rate = config.network.dropout
    segnet = config.is_dense and config.network.encoder.startswith("segnet")
    need(
        rate == "published" or not (segnet or config.problem == "qm9"),
        "network.dropout",
        "must be published: SegNet and the network of qm9 have no dropout",
    )
    need(
        config.network.encoder == SupervisedConfig().network.encoder or config.is_dense,
        "network.encoder",
        "is for cityscapes and nyuv2 alone",
    )
    for wrong, key in (
        (config.rotograd.enabled, "rotograd.enabled"),
        (config.smto.gradient_space == "representation", "smto.gradient_space"),
    ):
        need(
            not (wrong and config.has_own_features),
            key,
            "is impossible with network.encoder segnet_mtan: its tasks share no representation",
        )
    need(
        not config.network.weights or config.starts_from_imagenet,
        "network.weights",
        "is for the resnets of cityscapes and nyuv2 alone; the other networks start from random "
        "weights, as published",
    )


def _check_gradient_samples(config: SupervisedConfig, need: Need) -> None:
    key, samples = "smto.gradient_samples", config.smto.gradient_samples
    if not samples:
        return
    most = config.train.batch_size
    need(1 <= samples <= most, key, f"must be zero (all) or at most train.batch_size, {most}")
    by_gramian = describe(methods.find(config.smto.name)).needs == "gramian"
    need(
        by_gramian and config.gradient_space == "parameters",
        key,
        "is for methods that take a Gramian, with smto.gradient_space parameters",
    )
    need(not config.rotograd.enabled, key, "does not go with rotograd")
    need(config.problem != "qm9", key, "is for images alone, not for the molecules of qm9")
