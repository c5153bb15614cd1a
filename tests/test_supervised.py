"""Networks, training, resuming and the command line of the supervised benchmarks."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import imageio.v3
import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY, content, differences, empty_charts, steps_shown
from supervised_files import write_celeba, write_cityscapes, write_mnist
from supervised_runs import resumed_equals_uninterrupted, stop_after
from test_cli import refused
from torch import Tensor

from mtrl.commands import main as cli
from mtrl.commands.fixed_weights import fixed_weights
from mtrl.run import checkpoint
from mtrl.run.directory import RunDirectory
from mtrl.run.tags import LOWER_IS_BETTER
from mtrl.schema import dump_yaml, flatten
from mtrl.smto import FAMO
from mtrl.smto import registry as smto_registry
from mtrl.supervised import comparison, methods, networks
from mtrl.supervised.command import load_config, with_overrides
from mtrl.supervised.comparison import delta_m, mean_ranks
from mtrl.supervised.config import (
    CELEBA_ATTRIBUTES,
    PROBLEMS,
    NetworkConfig,
    ProblemName,
    RotoGradConfig,
    SmtoConfig,
    SupervisedConfig,
    TrainConfig,
    load_yaml,
    validate,
)
from mtrl.supervised.dashboard import dashboard
from mtrl.supervised.data import Batch, Batches, Loader
from mtrl.supervised.gradients import task_losses
from mtrl.supervised.learner import Learner
from mtrl.supervised.metrics import (
    ABSOLUTE_ERROR,
    CENTRE_ERROR,
    MEAN_IOU,
    MSE,
    PIXEL_ACCURACY,
    RELATIVE_ERROR,
    Metric,
    centre_loss,
    depth_loss,
    segmentation_loss,
)
from mtrl.supervised.preparation import load_data
from mtrl.supervised.problems import Problem, make_problem
from mtrl.supervised.step_size import StepSize
from mtrl.supervised.train import Trainer, train

PRESETS = sorted((REPOSITORY / "configs").glob("supervised_*.yaml"))
CPU = torch.device("cpu")


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- networks and metrics -----------------------------------------------------------------------


def test_parameter_counts_and_shapes() -> None:
    drop = torch.nn.Dropout(0.5)
    assert size(networks.lenet_encoder(drop)) == 21_330
    assert size(networks.digit_head(drop)) == 3_060
    z = networks.lenet_encoder(drop)(torch.zeros(2, 1, 28, 28))
    assert z.shape == (2, 50)
    assert networks.digit_decoder(drop)(z).shape == (2, 28, 28)
    assert size(networks.digit_decoder(drop)) == 214_544


def test_published_dropout_scales_nothing_and_shares_channels() -> None:
    torch.manual_seed(0)
    x = torch.rand(64, 40, 3, 3) + 1.0
    shared, own = (networks.PublishedDropout(whole_batch=whole) for whole in (True, False))
    kept = shared(x) / x
    assert torch.equal(kept, kept[:1, :, :1, :1].expand_as(kept))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(kept, shared(x) / x), "another mask for the next batch"
    kept = own(x) / x
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert 0.45 < kept.mean() < 0.55  # 23,040 elements: standard deviation 0.003
    assert torch.equal(own.eval()(x), x)


def layers(config: SupervisedConfig) -> list[type[torch.nn.Module]]:
    network = make_problem(config).network()
    kinds = (torch.nn.Dropout, torch.nn.Dropout2d, networks.PublishedDropout)
    return [type(module) for module in network.modules() if isinstance(module, kinds)]


def test_each_paper_has_its_own_dropout() -> None:
    published, plain = networks.PublishedDropout, torch.nn.Dropout
    assert layers(SupervisedConfig("multi_mnist")) == [published] * 3
    halved = NetworkConfig(dropout=0.5)
    by_channel = layers(SupervisedConfig("multi_mnist", network=halved))
    assert by_channel == [torch.nn.Dropout2d, plain, plain]
    assert layers(SupervisedConfig("multi_mnist_cl_cr", network=halved)) == [plain] * 3


def test_celeba_network() -> None:
    with torch.device("meta"):  # shapes alone
        network = networks.celeba_network(40, None)
        image = torch.empty(1, 3, 64, 64)
    assert size(network.encoder) == 11_168_832, "ResNet-18 without its classifier, 3x3 stem"
    assert network.encoder(image).shape == (1, 2048)
    assert [tuple(o.shape) for o in network(image)] == [(1, 2)] * 40
    assert dropout_rates(network) == {0.25, 0.5}
    with torch.device("meta"):
        assert dropout_rates(networks.celeba_network(2, 0.3)) == {0.3}


def dropout_rates(network: torch.nn.Module) -> set[float]:
    kinds = (torch.nn.Dropout, torch.nn.Dropout2d)
    return {module.p for module in network.modules() if isinstance(module, kinds)}


def test_dense_networks() -> None:
    for name, parameters, channels in (
        ("resnet50", 23_508_032, 2048),
        ("resnet18", 11_176_512, 512),
    ):
        with torch.device("meta"):
            network = networks.dense_network(name, [19, 1, 2], 0.5)
            image = torch.empty(2, 3, 64, 128)
        assert size(network.encoder) == parameters, "without its classifier"
        assert network.encoder(image).shape == (2, channels, 8, 16), "output stride 8"
        outputs = [tuple(output.shape) for output in network(image)]
        assert outputs == [(2, 19, 64, 128), (2, 1, 64, 128), (2, 2, 64, 128)]
    assert "layer4.0.downsample.0.weight" in network.encoder.state_dict(), "torchvision's names"


def test_pretrained_weights(tmp_path: Path) -> None:
    tiny = networks.ResNet(networks.BasicBlock, [1, 1, 1, 1], small=False, width=2)
    other = networks.ResNet(networks.BasicBlock, [1, 1, 1, 1], small=False, width=2)
    torch.save(other.state_dict() | {"fc.weight": torch.zeros(10, 16)}, tmp_path / "file.pt")
    networks.load_encoder(networks.MultiTaskNetwork(tiny, []), tmp_path / "file.pt")
    assert torch.equal(tiny.conv1.weight, other.conv1.weight)
    wide = networks.ResNet(networks.BasicBlock, [1, 1, 1, 1], small=False, width=3)
    with pytest.raises(ValueError, match=r"network\.weights.*does not fit.*conv1\.weight"):
        networks.load_encoder(networks.MultiTaskNetwork(wide, []), tmp_path / "file.pt")
    (tmp_path / "file.pt").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"network\.weights.*cannot be read"):
        networks.load_encoder(networks.MultiTaskNetwork(tiny, []), tmp_path / "file.pt")


def test_metrics_against_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, 6, generator=generator)
    truth = torch.randint(-1, 3, (4, 5, 6), generator=generator)
    depth = torch.rand(4, 5, 6, generator=generator) * torch.randint(
        2, (4, 5, 6), generator=generator
    )
    guess = torch.rand(4, 1, 5, 6, generator=generator)

    def in_two_batches(metric: Metric, output: Tensor, target: Tensor) -> float:
        sums = metric.statistics(output[:1], target[:1])
        return float(metric.value(sums + metric.statistics(output[1:], target[1:])))

    prediction, seen = logits.argmax(1), truth >= 0
    right = float((prediction == truth)[seen].double().mean())
    assert in_two_batches(PIXEL_ACCURACY, logits, truth) == pytest.approx(right)
    ious = []
    for c in range(3):
        both = ((prediction == c) & (truth == c))[seen].sum()
        either = ((prediction == c) | (truth == c))[seen].sum()
        ious.append(float(both / either))
    assert in_two_batches(MEAN_IOU, logits, truth) == pytest.approx(np.mean(ious))
    error = (guess[:, 0] - depth).abs()[depth != 0].double()
    assert in_two_batches(ABSOLUTE_ERROR, guess, depth) == pytest.approx(float(error.mean()))
    relative = float((error / depth[depth != 0]).mean())
    assert in_two_batches(RELATIVE_ERROR, guess, depth) == pytest.approx(relative)
    square = float((guess - depth[:, None]).square().mean())
    assert in_two_batches(MSE, guess, depth[:, None]) == pytest.approx(square)
    assert float(depth_loss(guess, depth)) == pytest.approx(float(error.mean()), rel=1e-5)
    assert float(depth_loss(guess, torch.zeros_like(depth))) == 0.0
    nothing = torch.full((1, 2, 2), -1)
    assert float(segmentation_loss(torch.randn(1, 3, 2, 2), nothing)) == 0.0

    offsets = torch.randn(4, 2, 5, 6, generator=generator)
    nothing = (torch.rand(4, 1, 5, 6, generator=generator) < 0.5).expand(-1, 2, -1, -1)
    offsets[nothing] = torch.nan
    guess = torch.zeros(4, 2, 5, 6, requires_grad=True)
    error = float(offsets[~nothing].abs().mean())
    assert in_two_batches(CENTRE_ERROR, guess.detach(), offsets) == pytest.approx(error)
    loss = centre_loss(guess, offsets)
    assert loss.item() == pytest.approx(error, rel=1e-5)
    (slope,) = torch.autograd.grad(loss, guess)
    assert torch.equal(slope == 0, nothing), "no gradient, and no NaN, where nothing is"
    assert centre_loss(guess, torch.full_like(offsets, torch.nan)).item() == 0.0


# -- configurations -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_is_valid_and_minimal(path: Path) -> None:
    config = load_config(str(path))
    validate(config)
    assert config.name == path.stem
    assert path.read_text().startswith("# ")
    chosen, defaults = flatten(load_yaml(path)), flatten(SupervisedConfig())
    given = yaml.safe_load(path.read_text())
    keys = [f"{s}.{k}" for s, v in given.items() if isinstance(v, dict) for k in v]
    assert not [key for key in keys if chosen[key] == defaults[key]]


def test_tasks_of_the_problems() -> None:
    names = {problem: SupervisedConfig(problem=problem).task_names for problem in PROBLEMS}
    assert names["digits"] == names["multi_mnist"] == ("classify_left", "classify_right")
    assert names["multi_mnist_cl_rr"] == ("classify_left", "reconstruct_right")
    assert names["multi_mnist_cl_cr"] == ("classify_left", "classify_right")
    assert names["multi_mnist_rl_rr"] == ("reconstruct_left", "reconstruct_right")
    assert len(names["celeba"]) == 40
    assert names["cityscapes"] == names["cityscapes_19"] == ("segmentation", "depth")
    centres = ("segmentation", "depth", "instance_centres")
    assert names["cityscapes_19_instances"] == centres


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_task_alone_has_its_own_targets_and_one_head(problem: str) -> None:
    if problem == "qm9":
        pytest.importorskip("torch_geometric")
        pytest.importorskip("rdkit")
    whole = SupervisedConfig(problem=cast(ProblemName, problem))
    batch = Batch(None, tuple(torch.full((1,), i) for i in range(whole.num_tasks)))
    for place, name in enumerate(whole.task_names):
        config = dataclasses.replace(whole, tasks=(name,))
        validate(config)
        assert config.problem_tasks == whole.task_names
        made = make_problem(config)
        assert [task.name for task in made.tasks] == [name]
        assert [int(target) for target in made.targets(batch)] == [place]
    with torch.device("meta"):
        assert len(made.network().heads) == 1
    assert made.selects_by_mean or len(made.tasks[0].metrics) > 1


def test_tasks_that_are_chosen_keep_the_problems_order_and_have_a_folder_of_their_own() -> None:
    config = SupervisedConfig(problem="nyuv2", tasks=("normals", "segmentation"))
    assert config.task_names == ("segmentation", "normals")
    assert config.run_path == Path("runs/nyuv2/unitary_segmentation+normals/seed_1")
    many = dataclasses.replace(config, problem="celeba", tasks=CELEBA_ATTRIBUTES[:20])
    assert many.run_path == Path("runs/celeba/unitary_20_tasks/seed_1")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", ["supervised needs a configuration"]),
        ("--seed 3", ["configuration first"]),
        ("supervised_digit", ["no such file or preset", "mean 'supervised_digits'"]),
        ("toy", ["is for `mtrl train`"]),
        ("supervised_digits --tasks clasify_left", ["tasks", "mean 'classify_left'"]),
        ("supervised_digits --tasks classify_left classify_left", ["tasks", "only once"]),
        ("supervised_digits --train.lr 0", ["train.lr = 0.0", "positive"]),
        ("supervised_digits --train.lr-decay 1.5", ["train.lr_decay = 1.5"]),
        (
            "supervised_digits --train.weight-decay 0.1",
            ["train.weight_decay = 0.1", "train.optimizer=adamw", "adam has train.l2"],
        ),
        (
            "supervised_digits --train.optimizer muon --train.l2 0.1",
            ["train.l2 = 0.1", "adam and sgd", "muon has train.weight_decay"],
        ),
        ("supervised_digits --smto.name pcgrd", ["smto.name = 'pcgrd'", "mean 'pcgrad'"]),
        ("supervised_digits --smto.options c=1", ["smto.options.c", "no such option"]),
        ("supervised_digits kurin/celeba/mgd", ["no such file", "mean 'kurin/celeba/mgda'"]),
        ("supervised_digits --network.dropout 1", ["network.dropout = 1.0", "published or in"]),
        (f"supervised_digits --seed {2**64}", [f"seed = {2**64}", f"at most {2**63 - 1}"]),
        ("supervised_digits --rotograd.size -1", ["rotograd.size = -1"]),
        ("supervised_celeba --smto.gradient-samples 8", ["smto.gradient_samples = 8", "Gramian"]),
        (
            "supervised_celeba --smto.gradient-samples 8 --smto.name mgda",
            ["smto.gradient_samples = 8", "smto.gradient_space parameters"],
        ),
        (
            "supervised_celeba --smto.gradient-samples 129 --smto.name pcgrad",
            ["smto.gradient_samples = 129", "at most train.batch_size, 128"],
        ),
        (
            "supervised_qm9 --smto.gradient-samples 8 --smto.name pcgrad",
            ["smto.gradient_samples = 8", "qm9"],
        ),
        ("supervised_digits --network.weights x.pt", ["network.weights", "cityscapes"]),
        ("supervised_multi_mnist --run-dir {run} --data-dir /nowhere", ["no such folder"]),
    ],
)
def test_bad_input_is_one_line(
    line: str, said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = line.format(run=tmp_path / "run").split()
    refused(["supervised", *words], capsys, *said)
    assert not (tmp_path / "run").exists()


# -- runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mnist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def small_config(
    folder: Path, run: Path, method: str = "pcgrad", epochs: int = 2
) -> SupervisedConfig:
    """With RotoGrad: what a plain run keeps in its checkpoints, and the rotations."""
    config = SupervisedConfig(problem="multi_mnist_cl_rr", data_dir=str(folder), run_dir=str(run))
    return dataclasses.replace(
        config,
        rotograd=dataclasses.replace(config.rotograd, enabled=True),
        train=dataclasses.replace(config.train, epochs=epochs, batch_size=20, lr_decay=0.5),
        smto=dataclasses.replace(config.smto, name=method),
        logging=dataclasses.replace(config.logging, every=2),
        diagnostics=dataclasses.replace(config.diagnostics, every=3),
        learner=dataclasses.replace(config.learner, device="cpu", threads=1),
    )


@pytest.fixture(scope="module")
def finished(mnist_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of five iterations, PCGrad, RotoGrad, dropout, one model selected per metric."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config = small_config(mnist_folder, path)
    train(config, RunDirectory.create(config), load_data(config))
    return path


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_holds_what_is_documented(finished: Path) -> None:
    assert load_yaml(finished / "config.yaml").problem == "multi_mnist_cl_rr"
    status = json.loads((finished / "status.json").read_text())
    assert (status["status"], status["step"], status["total_steps"]) == ("finished", 10, 10)
    tags = {tag for record in records(finished) for tag in record}
    assert {
        "train/loss/classify_left",
        "train/loss_mean",
        "eval/accuracy/classify_left",
        "eval/mse/reconstruct_right",
        "test/accuracy/classify_left",
        "test/mse_mean",
        "smto/shared/weight/classify_left",
        "gradients/shared/sum_norm",
        "gradients/shared/alignment",
        "time/epoch_s",
        "time/updates_per_s",
    } <= tags
    shown = dashboard(["accuracy", "mse"])
    assert empty_charts(shown, tags) == []
    assert tags.issuperset(shown.scores)
    assert [r["epoch"] for r in records(finished) if "epoch" in r] == [1, 2]
    looks = [r["step"] for r in records(finished) if "gradients/shared/sum_norm" in r]
    assert looks == [2, 4, 8, 10], "iterations 0, 3, 6 and 9, at the next log line"
    assert SupervisedConfig().diagnostics.every == 100, "as published"
    names = sorted(path.name for path in (finished / "checkpoints").glob("*.pt"))
    assert names == [
        "best_accuracy_classify_left.pt",
        "best_mse_reconstruct_right.pt",
        "step_000000000005.pt",
        "step_000000000010.pt",
    ]
    assert (finished / "environment.json").is_file()
    assert list(finished.glob("events.out.tfevents.*"))


def test_the_tested_model_is_the_best_on_validation(finished: Path, mnist_folder: Path) -> None:
    evaluated = [r["eval/mse/reconstruct_right"] for r in records(finished) if "eval/mse_mean" in r]
    config = small_config(mnist_folder, finished)
    problem = make_problem(config)
    splits = problem.load(mnist_folder)
    learner = Learner(config, problem, 10, CPU)
    best = checkpoint.load(finished / "checkpoints" / "best_mse_reconstruct_right.pt")
    learner.network.load_state_dict(best["network"])
    validation, test = (
        {score.metric: score.value for score in learner.evaluate(Loader(split, 2, CPU))}
        for split in (splits.validation, splits.test)
    )
    assert validation["mse"] == pytest.approx(min(evaluated))
    assert test["mse"] == pytest.approx(records(finished)[-1]["test/mse/reconstruct_right"])


def test_auto_lambda_holds_samples_out(mnist_folder: Path, tmp_path: Path) -> None:
    config = small_config(mnist_folder, tmp_path / "run", "auto_lambda", epochs=1)
    train(config, RunDirectory.create(config), load_data(config))
    log = records(tmp_path / "run")
    assert log[-1]["step"] == 4, "90 of the 100 training samples, 20 at a time"
    weights = [r["smto/shared/weight/classify_left"] for r in log if "train/loss_mean" in r]
    assert len(set(weights)) == len(weights), "they move"


def test_famo_learns_from_one_batch_before_and_after(
    mnist_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(mnist_folder, tmp_path / "run", "famo", epochs=1)
    network = dataclasses.replace(config.network, dropout=0.0)
    config = dataclasses.replace(config, network=network)
    problem = make_problem(config)
    learner = Learner(config, problem, 10, CPU)
    loader = Loader(problem.load(mnist_folder).train, 2, CPU)
    after: list[torch.Tensor] = []
    after_step = FAMO.after_step
    monkeypatch.setattr(
        FAMO, "after_step", lambda smto, losses: (after.append(losses), after_step(smto, losses))
    )
    for k in range(2):
        batch = loader.take(np.arange(3 * k, 3 * k + 3))
        outcome = learner.update(batch, 0)
        inputs, targets = problem.prepare(batch.inputs), problem.targets(batch)
        now = task_losses(learner.network, learner.losses, inputs, targets)
        torch.testing.assert_close(after[k], now.detach())
        assert (after[k] != outcome.losses).all()
        assert isinstance(learner.smto, FAMO)
        torch.testing.assert_close(learner.smto.before.float(), outcome.losses)


def test_stopped_and_resumed_equals_uninterrupted(
    finished: Path, mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the middle of the second epoch, then `mtrl resume`."""
    config = small_config(mnist_folder, tmp_path / "run")
    run = RunDirectory.create(config)
    torch.set_num_threads(1)  # as the configuration says, and `train` does
    with ExitStack() as stack:
        trainer = Trainer(config, run, load_data(config), CPU, stack)
        trainer.open_recorder()
        stop_after(trainer, 7)
    run._lock.close()  # as when the process ends
    assert trainer.step == 7
    torch.manual_seed(12345)  # as in another process
    with open(run.metrics_file, "ab") as file:
        file.write(b'{"step": 8, "tr\xff')  # a line that was being written
    cli.main(["resume", str(run.path)])
    assert "classify_left" in capsys.readouterr().out
    wanted, found = (
        checkpoint.load(checkpoint.step_path(path / "checkpoints", 10))
        for path in (finished, run.path)
    )
    wanted.pop("epoch_s"), found.pop("epoch_s")
    assert differences(wanted, found) == []
    ours, theirs = (
        [{k: v for k, v in r.items() if not k.startswith("time/")} for r in records(path)]
        for path in (finished, run.path)
    )
    assert ours[-3:] == theirs[-3:], "last losses, validation and test"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_every_optimizer_resumes(optimizer: str, mnist_folder: Path, tmp_path: Path) -> None:
    config = small_config(mnist_folder, tmp_path, "unitary")
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, optimizer=optimizer, batch_size=50)
    )
    assert "train/loss_mean" in resumed_equals_uninterrupted(config, tmp_path, stop_at=3)


def line_of(run: Path) -> list[str]:
    """The command whose run this is."""
    return ["supervised", str(run / "config.yaml"), "--run-dir", str(run), "--name", ""]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("command", ["resume", "supervised"])
def test_a_second_look_at_a_finished_run_changes_nothing(
    command: str,
    fails: bool,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = content(run)
    line = ["resume", str(run)] if command == "resume" else [*line_of(run), "--resume-if-exists"]
    if fails:

        def fail(trainer: Trainer) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Trainer, "test_scores", fail)
        with pytest.raises(SystemExit) as caught:
            cli.main(line)
        assert caught.value.code == 130
    else:
        cli.main(line)
    shown = capsys.readouterr()
    assert "is finished: only tested again" in shown.err
    assert ("classify_left" in shown.out) != fails
    assert content(run) == before


def test_an_existing_run_gives_no_leave_to_be_deleted(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = content(run)
    refused(line_of(run), capsys, "exists already", "--overwrite", "--resume-if-exists")
    refused([*line_of(run), "--overwrite", "--train.batch-size", "999"], capsys, "batch_size = 999")
    line = ["resume", str(run), "--train.epochs", "5", "--learner.device", "cuda:77"]
    refused(line, capsys, "learner.device")
    assert content(run) == before


def test_a_run_that_fails_before_its_first_iteration_leaves_nothing(
    mnist_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(Learner, "update", fail)
    config = small_config(mnist_folder, tmp_path / "new" / "run")
    with pytest.raises(MemoryError):
        train(config, RunDirectory(config.run_path), load_data(config))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_starts_over_shows_its_points_once(finished: Path, tmp_path: Path) -> None:
    """Killed before its first checkpoint: TensorBoard's file is all that is left."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "checkpoints")
    (run / "status.json").write_text('{"status": "running"}')
    before = steps_shown(run, "train/loss_mean")
    cli.main(["resume", str(run)])
    assert steps_shown(run, "train/loss_mean") == before == [2, 4, 5, 6, 8, 10]
    assert steps_shown(run, "test/mse_mean") == [10]
    assert [sum(tag in r for r in records(run)) for tag in ("test/mse_mean", "epoch")] == [1, 2]


def test_resume_refuses_other_settings(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["resume", str(finished)]
    refused([*line, "--train.lr", "0.5"], capsys, "train.lr", "a resumed run keeps")
    refused([*line, "--train.epochs", "1"], capsys, "train.epochs", "may only be raised")


def written(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def changed(state: dict[str, Any], **identity: Any) -> dict[str, Any]:
    return state | {"identity": state["identity"] | identity}


def resized(state: dict[str, Any]) -> dict[str, Any]:
    network = state["learner"]["network"]
    network["encoder.0.weight"] = network["encoder.0.weight"][:5]
    return state


def renamed(state: dict[str, Any]) -> dict[str, Any]:
    network = state["learner"]["network"]
    state["learner"]["network"] = {f"model.{name}": value for name, value in network.items()}
    return state


RL_STATE = {"step": 5, "agent": {}, "replay": {}, "best_success": 0.0, "elapsed": 1.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: RL_STATE, "no 'best'"),
        (lambda state: {"step": 5, "network": state["learner"]["network"]}, "no 'best'"),
        (lambda _: [1, 2], "another run's"),
        (lambda _: {}, "no 'step'"),
        (lambda state: changed(state, problem="digits"), "problem: digits, here multi_mnist_cl_rr"),
        (
            lambda state: changed(state, method="mgda+rotograd"),
            "method: mgda+rotograd, here pcgrad",
        ),
        (resized, "size mismatch for encoder.0.weight"),
        (renamed, "Missing key(s) in state_dict"),
    ],
)
def test_another_runs_checkpoint_is_refused(
    change: Callable[[dict[str, Any]], Any],
    said: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line, and the run stays as it is."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    path = checkpoint.step_path(run / "checkpoints", 10)
    checkpoint.save(path, change(checkpoint.load(path)))
    before = written(run)
    message = refused(["resume", str(run), "--train.epochs", "3"], capsys, said, code=1)
    assert str(path.parent) in message
    assert written(run) == before


def test_checkpoints_that_cannot_be_read(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A foreign file counts as damaged: the one before is used; where there is none, nothing is."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    newest, older = checkpoint.newest_first(run / "checkpoints")
    torch.save(torch.nn.Linear(2, 2).state_dict(), newest)
    torch.save(torch.nn.Linear(2, 2).state_dict(), older)
    before = written(run)
    refused(["resume", str(run)], capsys, newest.name, "no checkpoint can be read", code=1)
    assert written(run) == before
    gc.collect()  # what was refused in this process lets go of the run
    shutil.copy(finished / "checkpoints" / older.name, older)
    cli.main(["resume", str(run)])
    assert "resumed at step 5" in capsys.readouterr().err
    assert (
        differences(
            *(
                checkpoint.load(path / "checkpoints" / newest.name)["learner"]
                for path in (finished, run)
            )
        )
        == []
    )
    best = run / "checkpoints" / "best_mse_reconstruct_right.pt"
    checkpoint.save(best, {"step": 5, "network": {"weight": torch.zeros(2)}})
    refused(["resume", str(run)], capsys, str(best), "another run's: Error", code=1)


PLUGIN = """
from mtrl.smto import SMTO, register

@register("of_a_plugin_that_moves")
class Mine(SMTO):
    needs = "losses"

    def weights(self, *, losses=None, gramian=None):
        return losses / losses.sum()
"""


def test_a_run_is_resumed_from_any_folder(
    mnist_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And with its data and plug-in in another place; but not with other data."""
    monkeypatch.setattr(smto_registry, "_METHODS", dict(smto_registry._METHODS))
    shutil.copytree(mnist_folder, tmp_path / "data")
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    line = "supervised_multi_mnist --data-dir data --run-dir run --train.epochs 1 --learner.device"
    cli.main(
        ["supervised", *line.split(), "cpu", "--train.batch-size", "20", "--plugins", "mine.py"]
    )
    assert load_yaml(tmp_path / "run" / "config.yaml").data_dir == str(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    cli.main(["resume", "../run", "--train.epochs", "2"])
    assert "resumed at step 5" in capsys.readouterr().err

    (tmp_path / "data").rename(tmp_path / "moved")
    before = written(tmp_path / "run")
    refused(["resume", "../run"], capsys, "data_dir", str(tmp_path / "data"), "no such folder")
    write_mnist(tmp_path / "other", train=600)
    resume = ["resume", "../run", "--data-dir"]
    refused([*resume, "~/other"], capsys, "[100, 20, 20], here [500, 100, 20]", code=1)
    assert written(tmp_path / "run") == before
    gc.collect()  # what was refused in this process lets go of the run
    cli.main([*resume, "~/moved", "--train.epochs", "3"])
    assert load_yaml(tmp_path / "run" / "config.yaml").data_dir == str(tmp_path / "moved")
    (tmp_path / "mine.py").unlink()  # in this process its name is taken for good
    (tmp_path / "yours.py").write_text(PLUGIN.replace("that_moves", "that_has_moved"))
    refused(["resume", "../run", "--train.epochs", "4"], capsys, "plugins", "if it has moved")
    cli.main(["resume", "../run", "--train.epochs", "4", "--plugins", "~/yours.py"])
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["step"]) == ("finished", 20)


def test_start_weights_are_needed_at_the_start_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cityscapes(tmp_path / "data", train=5, test=1)
    monkeypatch.chdir(tmp_path)
    line = ["supervised", "supervised_cityscapes", "--data-dir", "data", "--run-dir", "run"]
    line += ["--train.epochs", "1", "--train.batch-size", "2", "--network.encoder", "resnet18"]
    line += ["--learner.device", "cpu", "--smto.name", "unitary", "--network.weights", "start.pt"]
    refused(line, capsys, "network.weights", str(tmp_path / "start.pt"), "cannot be read")
    encoder = networks.dilated_resnet("resnet18")
    state = encoder.state_dict()
    torch.save({"step": 1, "learner": {"network": state}}, "start.pt")
    refused(line, capsys, "network.weights", "not a state dictionary")
    torch.save({name: value[:1] for name, value in state.items() if value.ndim}, "start.pt")
    refused(line, capsys, "network.weights", "does not fit the encoder, at conv1.weight")
    torch.save(state | {"bn1.bias": torch.full((64,), torch.nan)}, "start.pt")
    refused(line, capsys, "network.weights", "not finite, in bn1.bias")
    assert not (tmp_path / "run").exists()

    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, "start.pt")
    started = with_overrides(load_config(line[1]), "", line[2:])
    assert started.network.weights == str(tmp_path / "start.pt")
    splits = load_data(started)
    learner = Learner(started, make_problem(started), 2, CPU)
    learner.load_start_weights()
    assert torch.equal(learner.network.encoder.conv1.weight, state["conv1.weight"])

    # Two runs that were killed, one of them before its first checkpoint.
    early, run = (
        RunDirectory.create(dataclasses.replace(started, run_dir=name)) for name in ("early", "run")
    )
    (tmp_path / "start.pt").unlink()
    with ExitStack() as stack:
        trainer = Trainer(started, run, splits, CPU, stack)
        trainer.open_recorder()
        trainer.step = trainer.total  # nothing is left to train: the test stays short
        trainer.save()
    early._lock.close(), run._lock.close()
    refused(["resume", "early"], capsys, "network.weights", "start.pt", "cannot be read")
    resume = ["resume", "run", "--network.weights"]
    refused([*resume, ""], capsys, "network.weights = ''", "started from a file")
    cli.main([*resume, "moved.pt"])
    assert "resumed at step 2" in capsys.readouterr().err
    config = load_yaml(tmp_path / "run" / "config.yaml")
    assert config.network.weights == str(tmp_path / "moved.pt")


@pytest.mark.parametrize(("method", "samples"), [("unitary", 100), ("auto_lambda", 90)])
def test_a_batch_needs_enough_samples(
    method: str,
    samples: int,
    mnist_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = f"supervised supervised_multi_mnist --data-dir {mnist_folder} --smto.name {method}"
    line += f" --run-dir {tmp_path / 'run'} --train.batch-size {samples + 1}"
    said = f"train.batch_size = {samples + 1}: must not exceed the {samples} training samples"
    refused(line.split(), capsys, said)
    assert not (tmp_path / "run").exists()


def test_weights_of_the_run_are_a_configuration(
    finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 10, "sm\xff')  # a line that was being written
    cli.main(["weights", str(run)])
    (tmp_path / "fixed.yaml").write_text(capsys.readouterr().out)
    config = load_yaml(tmp_path / "fixed.yaml")
    validate(config)
    before = load_yaml(finished / "config.yaml")
    assert config.smto.name == "fixed"
    assert config == dataclasses.replace(before, smto=config.smto, run_dir="")
    assert sum(config.smto.options["weights"]) == pytest.approx(1.0, abs=1e-5)
    refused(["weights", str(tmp_path)], capsys, "not a run directory")


def test_a_method_that_the_run_is_too_short_for_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--smto.name autoscale --train.epochs 1 --run-dir"
    line = ["supervised", "supervised_digits", *words.split(), str(tmp_path / "run")]
    refused(line, capsys, "smto.options", "train.epochs = 1 are 46 steps")
    assert not (tmp_path / "run").exists()


def test_fixed_weights_are_averaged_as_published() -> None:
    def line(step: int, a: float, b: float) -> dict[str, float]:
        return {"step": step, "smto/shared/weight/a": a, "smto/shared/weight/b": b}

    epochs = [
        line(10, 1.0, 1.0), line(20, 3.0, 1.0), {"step": 20, "epoch": 1},
        line(30, 1.0, 3.0), line(40, 1.0, 3.0), {"step": 40, "epoch": 2},
    ]  # fmt: skip
    found = fixed_weights(epochs, "shared", by_epoch=True)
    first, second = 4.0 / 6.0, 0.25
    assert found["a"] == pytest.approx(0.9 * first + 0.1 * second)
    assert found["a"] + found["b"] == pytest.approx(1.0)
    every = fixed_weights(epochs[:2], "shared", by_epoch=False)
    assert every["a"] == pytest.approx(0.9 * 0.5 + 0.1 * 0.75)
    assert fixed_weights(epochs, "critic", by_epoch=False) == {}


@pytest.mark.parametrize("problem", ["celeba", "cityscapes_19_instances"])
def test_large_problems_on_files_of_the_true_format(problem: str, tmp_path: Path) -> None:
    """One update and one evaluation with the published networks."""
    if problem == "celeba":
        folder = write_celeba(tmp_path / problem)
        config = load_config("supervised_celeba", "kurin/celeba/imtl")
    else:
        folder = write_cityscapes(tmp_path / problem, instances=True)
        line = ["--smto.name", "imtl"]
        config = with_overrides(load_config(f"gama/{problem}"), "", line)
    made: Problem = make_problem(config)
    splits = made.load(folder)
    learner = Learner(config, made, 10, CPU)
    before = [p.clone() for p in learner.network.parameters()]
    loader = Loader(splits.train, config.num_tasks, CPU)
    outcome = learner.update(Batches(loader, 3, config.seed, made.augment)[0], 0)
    assert outcome.losses.isfinite().all()
    moved = [
        not torch.equal(a, b) for a, b in zip(before, learner.network.parameters(), strict=True)
    ]
    assert np.mean(moved) > 0.95
    scores = learner.evaluate(Loader(splits.test, config.num_tasks, CPU))
    assert {score.metric for score in scores} == (
        {"accuracy"}
        if problem == "celeba"
        else {"mean_iou", "pixel_accuracy", "absolute_error", "relative_error", "centre_error"}
    )
    assert all(np.isfinite(score.value) for score in scores)


@pytest.mark.parametrize("method", ["unitary", "pcgrad", "unitary --tasks classify_right"])
def test_digits_are_learned(method: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    default = load_config("supervised_digits")
    line = f"--smto.name {method} --train.epochs 3 --train.lr 5e-3 --diagnostics.every 0"
    line += f" --run-dir {tmp_path / 'run'} --learner.device cpu --learner.threads 1"
    config = with_overrides(default, "", line.split())
    scores = train(config, RunDirectory.create(config), load_data(config))
    # The worse task with ten seeds: 0.72, standard deviation 0.03 (both methods); chance: 0.1.
    # The right digit alone is easier.
    assert min(score.value for score in scores) > 0.6, scores


def test_the_resolved_file_reproduces_the_run(tmp_path: Path) -> None:
    config = with_overrides(load_config("supervised_celeba"), "", ["--smto.name", "cagrad"])
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    assert load_yaml(tmp_path / "config.yaml") == config


def test_every_method_is_accepted() -> None:
    for method in methods.available():
        options = {"weights": [1, 2]} if method == "fixed" else {}
        validate(SupervisedConfig(smto=SmtoConfig(method, options)))


def test_comparison_of_runs(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = REPOSITORY / "scripts" / "compare_supervised.py"
    monkeypatch.setattr("sys.argv", [str(script), str(finished), "--baseline", "pcgrad+rotograd"])
    monkeypatch.syspath_prepend(script.parent)
    found = runpy.run_path(str(script), run_name="__main__")
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    tested = records(finished)[-1]
    assert row[:2] == ["| `pcgrad+rotograd`", "1"]
    assert float(row[2]) == pytest.approx(tested["test/accuracy/classify_left"], abs=1e-4)
    assert float(row[3]) == pytest.approx(tested["test/mse/reconstruct_right"], abs=1e-4)
    assert row[5] == "1.00"
    assert float(row[6].strip("| ")) > 0
    mean, half = map(float, found["interval"]([0.1, 0.2, 0.6]).split(" ± "))
    assert (mean, half) == pytest.approx((0.3, 4.3027 * 0.264575 / 3**0.5), abs=1e-4)


COMPARISONS = [
    shlex.split(line)
    for page in ("results", "supervised")
    for line in (REPOSITORY / f"docs/{page}.md").read_text().splitlines()
    if line.startswith("python scripts/compare_supervised.py results/")
]


@pytest.mark.parametrize("line", COMPARISONS, ids=lambda line: line[2])
def test_documented_comparison_of_records(
    line: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, script, folder, *options = line
    baseline = options[options.index("--baseline") + 1 :][:1] if "--baseline" in options else []
    words = [script, str(REPOSITORY / folder), *(["--baseline", *baseline] if baseline else [])]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    runpy.run_path(str(REPOSITORY / script), run_name="__main__")
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) >= 8, "methods"
    assert all("nan" not in row for row in rows)


def test_a_comparison_whose_reader_has_gone_says_nothing() -> None:
    line = [sys.executable, "scripts/compare_supervised.py", "results/digits"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            line, cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_comparison_keeps_settings_apart_and_counts_a_seed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = (0.1, 1, 0.5, "finished"), (0.1, 1, 0.5, "finished"), (0.01, 1, 0.9, "finished")
    for number, (lr, seed, score, status) in enumerate([*runs, (0.1, 2, 0.7, "stopped")]):
        run = tmp_path / f"run_{number}"
        run.mkdir()
        (run / "config.yaml").write_text(
            f"problem: digits\nseed: {seed}\nsmto: {{name: unitary}}\ntrain: {{lr: {lr}}}\n"
        )
        (run / "metrics.jsonl").write_text(json.dumps({"step": 5, "test/accuracy/a": score}) + "\n")
        (run / "status.json").write_text(
            json.dumps({"status": status, "step": 5, "total_steps": 5})
        )
    script = REPOSITORY / "scripts" / "compare_supervised.py"
    figure = tmp_path / "figures/delta_m.png"
    line = [str(script), str(tmp_path), "--baseline", "unitary (lr=0.1)", "--figure", str(figure)]
    monkeypatch.setattr("sys.argv", line)
    monkeypatch.syspath_prepend(script.parent)
    runpy.run_path(str(script), run_name="__main__")
    shown = capsys.readouterr()
    rows = [row.split(" | ") for row in shown.out.splitlines() if row.startswith("| `")]
    assert [row[:3] for row in rows] == [
        ["| `unitary (lr=0.01)`", "1", "0.9000"],
        ["| `unitary (lr=0.1)`", "1", "0.5000"],
    ]
    assert "the same settings and seed" in shown.err
    assert min(imageio.v3.imread(figure).shape[:2]) > 100


def write_tested(run: Path, config: str, **scores: float) -> None:
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(config)
    tested = {f"test/accuracy/{task}": score for task, score in scores.items()}
    (run / "metrics.jsonl").write_text(json.dumps({"step": 5, **tested}) + "\n")
    (run / "status.json").write_text('{"status": "finished", "step": 5, "total_steps": 5}')


def test_comparison_with_runs_of_single_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = "problem: digits\nseed: {}\nsmto: {{name: unitary}}\n"
    for seed, scores in {1: (0.5, 0.8), 2: (0.7, 0.6)}.items():
        for task, score in zip("ab", scores, strict=True):
            text = kept.format(seed) + f"tasks: [{task}]\n"
            write_tested(tmp_path / f"{task}_{seed}", text, **{task: score})
    write_tested(
        tmp_path / "a_3", kept.format(3) + "tasks: [a]\n", a=0.9
    )  # there is no b of seed 3
    write_tested(tmp_path / "both", kept.format(1) + "tasks: []\n", a=0.9, b=0.7)
    script = REPOSITORY / "scripts" / "compare_supervised.py"
    line = [str(script), str(tmp_path), "--baseline", "single_tasks"]
    monkeypatch.setattr("sys.argv", line)
    monkeypatch.syspath_prepend(script.parent)
    runpy.run_path(str(script), run_name="__main__")
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines() if "`" in row]
    (name, seeds, a, b, _, gain, rank, _), single = rows
    assert (name, seeds, a, b, rank) == ("| `unitary`", "1", "0.9000", "0.7000", "1.00")
    assert float(gain) == pytest.approx(100 * (0.9 - 0.6) / 0.6 / 2, abs=0.01)  # b's gain is 0
    assert single[:2] == ["| `single_tasks`", "2"]
    assert [one.split()[0] for one in single[2:5]] == ["0.6000", "0.7000", "0.6500"]
    shutil.rmtree(tmp_path / "both")
    write_tested(tmp_path / "faster", kept.format(2) + "tasks: []\ntrain: {lr: 1}\n", a=0.9, b=0.7)
    runpy.run_path(str(script), run_name="__main__")
    said = "warning: runs of single tasks have train.lr = None, others do not"
    assert said in capsys.readouterr().err
    write_tested(tmp_path / "other", kept.format(1) + "tasks: [a]\ntrain: {lr: 1}\n", a=0.9)
    with pytest.raises(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    assert "the runs of one task must have one setting" in capsys.readouterr().err
    line[-1] = "unitary"
    runpy.run_path(str(script), run_name="__main__")
    shown = capsys.readouterr()
    assert "runs of single tasks are left out: " in shown.err
    assert "single_tasks" not in shown.out
    line[-1] = "single_tasks"
    for name in ("b_1", "b_2", "other"):
        shutil.rmtree(tmp_path / name)
    with pytest.raises(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    assert "needs finished runs of every task, with a seed that all have; has a" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("baseline", ["published", "{file}"])
def test_comparison_with_given_single_task_values(
    baseline: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run of NYUv2 whose every score is a tenth better than the single tasks'."""
    single = comparison.SINGLE_TASK["nyuv2"]
    scores, file = {}, {}
    for (task, metric), value in single.items():
        better = 0.9 if metric in LOWER_IS_BETTER else 1.1
        scores[f"test/{metric}/{task}"] = better * value
        file.setdefault(task, {})[metric] = value / 2 if task == "depth" else value
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("problem: nyuv2\nsmto:\n  name: mgda\n")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 5, **scores}) + "\n")
    (run / "status.json").write_text('{"status": "finished", "step": 5, "total_steps": 5}')
    path = tmp_path / "single.yaml"
    path.write_text(yaml.dump(file))
    script = REPOSITORY / "scripts" / "compare_supervised.py"
    line = [str(script), str(run), "--baseline", baseline.format(file=path)]
    monkeypatch.setattr("sys.argv", line)
    monkeypatch.syspath_prepend(script.parent)
    runpy.run_path(str(script), run_name="__main__")
    gain = float(capsys.readouterr().out.splitlines()[-1].split(" | ")[-3])
    # Half the depth errors as baseline: there ours are 80% worse.
    assert gain == pytest.approx(10 if baseline == "published" else (10 - 80 + 10) / 3, abs=0.01)

    def refused_with(said: str) -> None:
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(script), run_name="__main__")
        assert caught.value.code == 2
        assert said in capsys.readouterr().err

    line[-1] = "pcgrad"
    refused_with("baseline = 'pcgrad': must be published, a .yaml file, or a tested method: mgda")
    path.write_text("depth: {absolute_error: 1}\n")
    line[-1] = str(path)
    refused_with("has no mean_iou of segmentation")
    path.write_text("depth: {absolute_error: small}\n")
    refused_with("depth.absolute_error = 'small': ")
    line[-1] = str(tmp_path / "nowhere.yaml")
    refused_with("nowhere.yaml")


def test_the_model_with_the_best_delta_m_is_the_one_that_is_tested(
    mnist_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Gama & Grassi: single tasks first, then runs that are selected against their scores."""
    best: dict[str, float] = {}
    for task in ("classify_left", "reconstruct_right"):
        config = small_config(mnist_folder, tmp_path / task, "unitary", epochs=3)
        config = dataclasses.replace(config, tasks=(task,), rotograd=RotoGradConfig())
        train(config, RunDirectory.create(config), load_data(config))
        (tag,) = (t for t in records(tmp_path / task)[-1] if t.endswith(f"/{task}"))
        validation = tag.replace("test/", "eval/")
        seen = [r[validation] for r in records(tmp_path / task) if validation in r]
        assert len(seen) == 3
        best[validation.removeprefix("eval/")] = (min if "mse" in tag else max)(seen)
    script = REPOSITORY / "scripts" / "compare_supervised.py"
    file = tmp_path / "reference.yaml"
    monkeypatch.setattr("sys.argv", [str(script), str(tmp_path), "--reference", str(file)])
    monkeypatch.syspath_prepend(script.parent)
    runpy.run_path(str(script), run_name="__main__")
    reference = load_config("supervised_multi_mnist_cl_rr", str(file)).train.reference
    assert reference == pytest.approx(best, rel=1e-5)

    config = small_config(mnist_folder, tmp_path / "both", "unitary", epochs=3)
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, reference=reference, lr_patience=1)
    )
    run = RunDirectory.create(config)
    train(config, run, load_data(config))
    log = [r for r in records(run.path) if "eval/delta_m" in r]
    gains = [
        50 * (r["eval/accuracy/classify_left"] / reference["accuracy/classify_left"] - 1)
        + 50 * (1 - r["eval/mse/reconstruct_right"] / reference["mse/reconstruct_right"])
        for r in log
    ]
    assert [r["eval/delta_m"] for r in log] == pytest.approx(gains, rel=1e-5)
    state = checkpoint.load(run.checkpoints / "best.pt")
    assert state["step"] == log[gains.index(max(gains))]["step"]
    assert not list(run.checkpoints.glob("best_*")), "one model for all metrics"
    cli.main(["resume", str(run.path), "--train.epochs", "4"])
    assert sum("eval/delta_m" in r for r in records(run.path)) == 4

    wrong = ["--train.reference", "accuracy/classify_left=0.9", "mse/reconstruct_rihgt=1"]
    words = ["supervised", "supervised_multi_mnist_cl_rr", *wrong, "--data-dir", str(mnist_folder)]
    refused(words, capsys, "train.reference.mse/reconstruct_rihgt", "mean 'mse/reconstruct_right'")
    words[4:5] = []
    refused(words, capsys, "train.reference.mse/reconstruct_right", "must be a number, not zero")
    words[2:4] = ["--train.lr-patience", "3"]
    refused(words, capsys, "train.lr_patience = 3", "train.reference")


def test_step_sizes_follow_a_plateau_like_pytorchs() -> None:
    config = TrainConfig(lr=0.1, lr_decay=0.7, lr_patience=2, lr_min=0.03)
    ours = StepSize(config)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.7, patience=2, min_lr=0.03
    )
    scores = [3.0, 2.0, 2.0, 1.9999, 2.1, 2.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    for epoch, score in enumerate([*scores, 0.5, *[0.6] * 9]):
        assert ours.at(epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        ours.hear(score, higher_is_better=False)
        theirs.step(score)
        again = StepSize(config)
        again.load_state_dict(ours.state_dict())
        ours = again
    assert ours.at(0) == 0.03
    assert StepSize(TrainConfig(lr=1e-6, lr_min=1e-5)).at(0) == 1e-6, "never raised"


def test_delta_m_and_ranks_by_hand() -> None:
    baseline = {("a", "accuracy"): 0.5, ("b", "mse"): 2.0, ("b", "mean_iou"): 0.4}
    better = {("a", "accuracy"): 0.6, ("b", "mse"): 1.0, ("b", "mean_iou"): 0.4}
    # a: +20%; b: mean of +50% (lower is better) and 0
    assert delta_m(better, baseline) == pytest.approx((20 + 25) / 2)
    assert delta_m(baseline, baseline) == 0.0
    ranks = mean_ranks({"old": baseline, "new": better})
    assert ranks == pytest.approx({"old": (2 + (2 + 1.5) / 2) / 2, "new": (1 + 1.25) / 2})
    tied = {"one": {("a", "mse"): (0.1 + 0.2) / 3}, "two": {("a", "mse"): 0.1}}
    assert mean_ranks(tied) == {"one": 1.5, "two": 1.5}, "two sums of the same numbers"
    broken = {("a", "mse"): math.nan}
    assert mean_ranks({"good": {("a", "mse"): 1.0}, "nan": broken}) == {"good": 1.0, "nan": 2.0}
