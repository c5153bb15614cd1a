"""NYUv2: MTAN's arrays, SegNets, the metrics of normals, and runs."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from supervised_files import write_cityscapes, write_nyuv2
from supervised_runs import CPU, resumed_equals_uninterrupted
from test_cli import refused
from torch.nn import functional

from mtrl.smto import create
from mtrl.supervised import networks, nyuv2, segnet
from mtrl.supervised.command import load_config, with_overrides
from mtrl.supervised.config import SupervisedConfig, validate
from mtrl.supervised.data import Batch, Batches, Loader
from mtrl.supervised.files import DataError
from mtrl.supervised.gradients import backward
from mtrl.supervised.learner import Learner
from mtrl.supervised.metrics import NORMALS, normals_loss
from mtrl.supervised.problems import make_problem


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path / "cache"))


# -- files ----------------------------------------------------------------------------------------


def test_nyuv2_from_mtan_arrays(tmp_path: Path) -> None:
    folder = write_nyuv2(tmp_path / "nyuv2")
    splits = nyuv2.load(tmp_path, step=32)
    assert [len(split.inputs) for split in splits] == [8, 2, 3]
    numbers = [np.rint(100 * split.inputs[:, 0, 0, 0]).astype(int) for split in splits]
    assert sorted([*numbers[0], *numbers[1]]) == list(range(10))
    for split, part, chosen in zip(splits, ("train", "train", "val"), numbers, strict=True):
        for i, number in enumerate(chosen):
            labels, depths, normals = (target[i] for target in split.targets)
            raw = {
                what: np.load(folder / part / what / f"{number}.npy")
                for what in ("label", "depth", "normal")
            }
            assert (labels == raw["label"]).all()
            assert np.allclose(depths, raw["depth"][..., 0])
            assert np.allclose(normals.transpose(1, 2, 0), raw["normal"], atol=1e-6)


def _but(value: float) -> NDArray[np.float64]:
    values = np.zeros((32, 32, 3))
    values[3, 17, 1] = value
    return values


@pytest.mark.parametrize(
    ("what", "values", "said"),
    [
        ("label", np.full((32, 32), 13.0), "[0, 0] is 13.0; labels must be -1..12"),
        ("normal", _but(127.0), "[3, 17, 1] is 127.0; normals must be in -1..1"),
        ("normal", _but(np.nan), "[3, 17, 1] is nan; normals must be in -1..1"),
        ("normal", np.zeros((3, 32, 32)), "expected shape (32, 32, 3)"),
        ("image", np.zeros((16, 16, 3)), "divisible by 32, found [16, 16, 3]"),
        ("normal", None, "4.npy is missing"),
    ],
)
def test_damaged_nyuv2(
    what: str, values: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_nyuv2(tmp_path / "nyuv2")
    for path in (folder / "train" / what).iterdir():
        if path.stem == "4" or what == "image":
            np.save(path, values) if values is not None else path.unlink()
    line = f"supervised supervised_nyuv2 --data-dir {folder} --run-dir {tmp_path / 'run'}"
    message = refused(line.split(), capsys, said)
    assert str(folder / "train" / what) in message
    assert not (tmp_path / "run").exists()


def test_missing_folders(tmp_path: Path) -> None:
    folder = write_nyuv2(tmp_path / "nyuv2")
    shutil.rmtree(folder / "val" / "normal")
    with pytest.raises(DataError, match=r"val/normal is missing; MTAN's NYUv2 arrays"):
        nyuv2.load(folder)
    for path in (folder / "train" / "normal").iterdir():
        np.save(path, np.zeros((32, 32, 3)))
    shutil.copytree(folder / "train" / "normal", folder / "val" / "normal")
    for i in range(3, 10):
        (folder / "val" / "normal" / f"{i}.npy").unlink()
    with pytest.raises(DataError, match="train/normal: no pixel of these 8 samples has a value"):
        nyuv2.load(folder)


def test_parts_are_enlarged_and_mirrored_with_their_targets() -> None:
    """Every pixel of the scene says where it is: in its image, its label, its depth, its normal."""
    height, samples = 60, 40
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(120.0), indexing="ij")
    image = torch.stack([x, y, torch.zeros_like(x)], -1) / 120
    labels = torch.where(x + y > 100, 7, -1)
    angle = x / 100
    normals = torch.stack([angle.sin(), torch.zeros_like(x), angle.cos()])
    targets = (labels, 1 + x, normals)
    batch = Batch(
        image.expand(samples, -1, -1, -1), tuple(t.expand(samples, *t.shape) for t in targets)
    )
    images, (found, depths, turned) = nyuv2.scale_and_mirror(batch, np.random.default_rng(0))
    scales, mirrors = set(), set()
    for i in range(samples):
        from_x, from_y = 120 * images[i, ..., 0], 120 * images[i, ..., 1]
        step = float(from_x[30, 70] - from_x[30, 50]) / 20
        scale = round(1 / abs(step), 2)
        scales.add(scale)
        mirrors.add(step > 0)
        # Nearest and bilinear neighbours are up to half a pixel apart.
        nearest = depths[i] * scale - 1
        assert (nearest - from_x).abs().max() < 0.6
        assert (from_y >= -0.01).all()
        assert (from_y <= height - 0.99).all()
        far = (from_x + from_y - 100).abs() > 2
        assert torch.equal(found[i][far], torch.where(from_x + from_y > 100, 7, -1)[far])
        sign = 1 if step > 0 else -1
        torch.testing.assert_close(turned[i, 0], sign * (nearest / 100).sin(), rtol=0, atol=1e-4)
        torch.testing.assert_close(turned[i, 2], (nearest / 100).cos(), rtol=0, atol=1e-4)
    assert scales == {1.0, 1.2, 1.5}
    assert mirrors == {True, False}


# -- metrics and networks --------------------------------------------------------------------------


def test_angles_of_known_size() -> None:
    """0, 10, 20, 25, 40 and 180 degrees, and a pixel without a normal; lengths do not count."""
    degrees = torch.tensor([0.0, 10.0, 20.0, 25.0, 40.0, 180.0]).double()
    radians = degrees.deg2rad()
    truth = torch.stack([radians.sin(), torch.zeros(6), radians.cos()]).float()
    truth = torch.cat([truth, torch.zeros(3, 1)], 1)[None, :, None]  # [1, 3, 1, 7]
    output = torch.tensor([0.0, 0.0, 5.0])[None, :, None, None].expand_as(truth)
    halves = [(output[..., part], truth[..., part]) for part in (slice(3), slice(3, 7))]
    found = {}
    for metric in NORMALS:
        sums = [metric.statistics(*half) for half in halves]
        found[metric.name] = float(metric.value(sums[0] + sums[1]))
        assert metric.higher_is_better == metric.name.startswith("within")
    # float32 components: 180 degrees are right to 1e-5.
    assert found.pop("mean_angle") == pytest.approx(275 / 6, abs=1e-4)
    assert found.pop("median_angle") == pytest.approx(22.5, abs=0.01)
    assert found == {"within_11.25": 2 / 6, "within_22.5": 3 / 6, "within_30": 4 / 6}
    loss = normals_loss(output, truth)
    assert float(loss) == pytest.approx(float((1 - radians.cos()).mean()), rel=1e-5)


def test_the_median_of_many_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    output, truth = torch.randn(2, 2, 3, 40, 50, generator=generator)
    median = next(metric for metric in NORMALS if metric.name == "median_angle")
    found = float(median.value(median.statistics(output, truth)))
    cosine = functional.cosine_similarity(output.double(), truth.double())
    assert found == pytest.approx(np.median(cosine.acos().rad2deg().numpy()), abs=0.01)


def test_normals_without_a_target_have_no_slope() -> None:
    output = torch.zeros(1, 3, 2, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(normals_loss(output, torch.zeros(1, 3, 2, 2)), output)
    assert not slope.any()


def test_the_published_sizes() -> None:
    """MTAN's code prints its parameters over 24,981,069, those of SegNet for segmentation alone;
    its paper (Table 1) has 1.77 for the attention network with three tasks."""
    with torch.device("meta"):
        single = networks.dense_network("segnet", [13], 0.5)
        attention = networks.dense_network("segnet_mtan", [13, 1, 3], 0.5)
        shared = networks.dense_network("segnet", [13, 1, 3], 0.5)
        image = torch.empty(2, 3, 32, 64)
    assert sum(p.numel() for p in single.parameters()) == 24_981_069
    assert sum(p.numel() for p in attention.parameters()) == 44_229_073  # 1.7705 times
    for network, channels in ((shared, 64), (attention, 3 * 64)):
        z = network.encoder(image)
        assert z.shape == (2, channels, 32, 64)
        outputs = [tuple(head(z).shape) for head in network.heads]
        assert outputs == [(2, 13, 32, 64), (2, 1, 32, 64), (2, 3, 32, 64)]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """SegNets with a hundredth of the parameters."""
    monkeypatch.setattr(segnet, "WIDTHS", (4, 8, 16, 16, 16))
    monkeypatch.setattr(segnet, "LEAVING", (4, 4, 8, 16, 16))
    monkeypatch.setitem(networks.CHANNELS, "segnet", 4)


@pytest.mark.usefixtures("narrow")
def test_with_attention_each_task_has_its_own_channels() -> None:
    network = networks.dense_network("segnet_mtan", [13, 1, 3], 0.5)
    network.eval()  # BatchNorm on one sample of 32 x 32 has a single value at the lowest level
    image = torch.rand(1, 3, 32, 32)
    z = network.encoder(image)
    before = network(image)
    with torch.no_grad():
        for parameter in network.encoder.tasks[1].parameters():
            parameter.mul_(1.5)
    changed = (network.encoder(image) != z).flatten(2).any(2)[0].view(3, 4).any(1)
    assert changed.tolist() == [False, True, False]
    after = [torch.equal(a, b) for a, b in zip(before, network(image), strict=True)]
    assert after == [True, False, True]


@pytest.fixture
def learner_of(tmp_path: Path, narrow: None) -> Callable[..., tuple[Learner, Batch]]:
    folder = write_nyuv2(tmp_path / "nyuv2", train=5, test=1)

    def make(*words: str) -> tuple[Learner, Batch]:
        config = with_overrides(load_config("supervised_nyuv2"), "", list(words))
        problem = make_problem(config)
        learner = Learner(config, problem, 10, CPU)
        loader = Loader(problem.load(folder).train, config.num_tasks, CPU)
        return learner, Batches(loader, 2, config.seed, problem.augment)[0]

    return make


@pytest.mark.parametrize("chunk_size", [1, 3])
@pytest.mark.parametrize("space", ["parameters", "representation"])
def test_both_spaces_against_single_backwards(
    space: Any, chunk_size: int, learner_of: Callable[..., tuple[Learner, Batch]]
) -> None:
    """Unpooling, in passes of one task and of several; MGDA's weights on the rows of each space."""
    learner, batch = learner_of("--network.encoder", "segnet", "--smto.name", "mgda")
    network, inputs = learner.network.eval(), learner.problem.prepare(batch.inputs)
    backward(
        network, learner.losses, create("mgda", 3), inputs, batch.targets,
        space=space, chunk_size=chunk_size,
    )  # fmt: skip
    found = torch.cat([p.grad.flatten() for p in network.encoder.parameters()])
    z = network.encoder(inputs)
    losses = [
        loss(head(z), target)
        for loss, head, target in zip(learner.losses, network.heads, batch.targets, strict=True)
    ]
    at = list(network.encoder.parameters()) if space == "parameters" else [z]
    rows = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, at, retain_graph=True)])
            for loss in losses
        ]
    )
    wanted = create("mgda", 3).combine(rows, torch.stack(losses).detach())
    if space == "representation":
        slopes = torch.autograd.grad(z, list(network.encoder.parameters()), wanted.view_as(z))
        wanted = torch.cat([g.flatten() for g in slopes])
    # Convolutions sum in another order when passes are batched: float32, a thousand terms.
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("encoder", ["segnet_mtan", "resnet18"])
def test_an_update_of_the_other_networks(
    encoder: str, learner_of: Callable[..., tuple[Learner, Batch]]
) -> None:
    learner, batch = learner_of("--network.encoder", encoder, "--smto.name", "imtl")
    assert learner.config.gradient_space == (
        "parameters" if encoder == "segnet_mtan" else "representation"
    ), "with attention, tasks share no representation"
    before = [p.clone() for p in learner.network.parameters()]
    assert learner.update(batch, 99).losses.isfinite().all()
    assert learner.optimizer.param_groups[0]["lr"] == 1e-4
    learner.update(batch, 100)
    assert learner.optimizer.param_groups[0]["lr"] == 5e-5, "halved after 100 epochs"
    moved = [a.ne(b).any() for a, b in zip(before, learner.network.parameters(), strict=True)]
    assert np.mean(moved) > 0.9


@pytest.mark.usefixtures("narrow")
def test_segnet_takes_cityscapes_too(tmp_path: Path) -> None:
    folder = write_cityscapes(tmp_path / "cityscapes", side=32)
    words = ["--network.encoder", "segnet_mtan", "--train.batch-size", "2"]
    config = with_overrides(load_config("supervised_cityscapes"), "", words)
    problem = make_problem(config)
    batch = Loader(problem.load(folder).train, 2, CPU).take(np.arange(2))
    outputs = problem.network()(problem.prepare(batch.inputs))
    assert [output.shape[1] for output in outputs] == [7, 1]


# -- runs -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("narrow")
def test_a_run_resumes_exactly(tmp_path: Path) -> None:
    """SegNet, augmented, PCGrad: stopped in its second epoch."""
    folder = write_nyuv2(tmp_path / "nyuv2", train=5, test=2)
    words = f"--data-dir {folder} --network.encoder segnet --smto.name pcgrad --train.epochs 2"
    words += " --train.lr-decay-every 1 --diagnostics.every 0 --learner.device cpu"
    words += " --learner.threads 1"
    config = with_overrides(load_config("supervised_nyuv2"), "", words.split())
    tags = resumed_equals_uninterrupted(config, tmp_path, stop_at=3)
    names = ("mean_angle", "median_angle", "within_11.25", "within_22.5", "within_30")
    assert {f"test/{name}/normals" for name in names} <= tags
    assert {"test/mean_iou/segmentation", "test/relative_error/depth"} <= tags


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nyuv2 --smto.gradient-space representation", ["smto.gradient_space", "segnet_mtan"]),
        ("nyuv2 --rotograd.enabled", ["rotograd.enabled = true", "segnet_mtan"]),
        ("nyuv2 --network.dropout 0.1", ["network.dropout = 0.1", "must be published"]),
        ("nyuv2 --network.weights x.pt", ["network.weights", "resnets"]),
        ("nyuv2 --train.lr-decay-every 0", ["train.lr_decay_every = 0", "at least 1"]),
        ("celeba --network.encoder segnet", ["network.encoder = 'segnet'", "cityscapes and nyuv2"]),
        ("celeba --train.augment", ["train.augment", "cityscapes and nyuv2"]),
        ("qm9 --network.dropout 0.1", ["network.dropout = 0.1", "must be published"]),
    ],
)
def test_what_does_not_go_together(
    line: str, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["supervised", *f"supervised_{line}".split()], capsys, *said)


def test_encoders_and_spaces() -> None:
    """Whatever is not refused is what it says."""
    for encoder, method in itertools.product(
        ("resnet50", "segnet", "segnet_mtan"), ("mgda", "edm")
    ):
        config = SupervisedConfig(problem="nyuv2")
        config = dataclasses.replace(
            config,
            network=dataclasses.replace(config.network, encoder=encoder),
            smto=dataclasses.replace(config.smto, name=method),
        )
        validate(config)
        at_z = method == "mgda" and encoder != "segnet_mtan"
        assert config.gradient_space == ("representation" if at_z else "parameters")
