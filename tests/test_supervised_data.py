from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from supervised_files import idx, write_celeba, write_cityscapes, write_mnist

from mtrl.supervised import celeba, cityscapes, mnist
from mtrl.supervised.data import Batch, Batches, Loader, Split
from mtrl.supervised.files import DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path / "cache"))


# -- Multi-MNIST --------------------------------------------------------------------------------


def test_overlay_against_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 256, (2, 3, 28, 28), dtype=np.uint8)
    canvas = np.zeros((3, 36, 36), dtype=np.uint8)
    for n in range(3):
        for y in range(28):
            for x in range(28):
                canvas[n, y, x] = max(canvas[n, y, x], left[n, y, x])
                canvas[n, y + 6, x + 6] = max(canvas[n, y + 6, x + 6], right[n, y, x])
    found = mnist.overlay(left, right)
    for y in range(28):
        for x in range(28):
            # the source pixel whose area holds the target pixel's centre
            sy, sx = int((y + 0.5) * 36 / 28), int((x + 0.5) * 36 / 28)
            assert (found[:, y, x] == canvas[:, sy, sx]).all()


def test_pairs_are_the_same_everywhere() -> None:
    """Numbers of PCG64's specification, not of a NumPy version."""
    numbers = mnist.uniform_integers(0, 1000, 50_000)
    assert numbers[:5].tolist() == [31848, 13489, 2048, 826, 40663]
    assert numbers.min() >= 0
    assert numbers.max() < 50_000
    assert abs(numbers.mean() - 25_000) < 2_000
    assert (mnist.uniform_integers(0, 1000, 50_000) == numbers).all()
    assert (mnist.uniform_integers(1, 1000, 50_000) != numbers).mean() > 0.9


def test_multi_mnist_from_idx_files(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "mnist")
    pairs = mnist.multi_mnist(folder)
    assert [len(part.images) for part in pairs] == [100, 20, 20]
    assert len(cached_pairs(tmp_path)) == 3
    train = mnist.read_idx(folder, "train-labels-idx1-ubyte")
    assert (pairs.train.left_class == train[:100]).all(), "left = every image in order"
    assert (pairs.validation.left_class == train[100:]).all()
    again = mnist.multi_mnist(folder)
    assert all((a == b).all() for a, b in zip(pairs.train, again.train, strict=True))
    split = pairs.train.targets_of(("classify_left", "reconstruct_right"))
    assert split.inputs.shape == (100, 1, 28, 28)
    assert split.targets[0].dtype == np.uint8
    pixels = (split.targets[1] * mnist.DEVIATION + mnist.MEAN) * 255
    assert np.allclose(pixels, pairs.train.right, atol=1e-3)


def cached_pairs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("multi_mnist_*.npz"))


def test_pairs_are_cached_by_all_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    classes = np.arange(6, dtype=np.uint8)
    first = mnist.make_pairs(images, classes, 0)
    (path,) = cached_pairs(tmp_path)
    content = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(mnist, "overlay", None)  # not made a second time
        again = mnist.make_pairs(images, classes, 0)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))

    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (content[:-9], b"", b"junk", flipped):
        path.write_bytes(damaged)
        again = mnist.make_pairs(images, classes, 0)
        assert all((a == b).all() for a, b in zip(first, again, strict=True))
        assert path.read_bytes() == content, "made anew, the same to the bit"

    mnist.make_pairs(images, classes, 1)
    mnist.make_pairs(images, classes, 0, copies=2)
    images[0, 0, 0] ^= 1
    mnist.make_pairs(images, classes, 0)
    monkeypatch.setattr(mnist, "RECIPE", mnist.RECIPE + 1)
    mnist.make_pairs(images, classes, 0)
    assert len(cached_pairs(tmp_path)) == 5, "seed, copies, source and recipe each have their own"
    assert not list((tmp_path / "cache").rglob("*.tmp"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train-labels-idx1-ubyte", None, "is missing"),
        ("train-labels-idx1-ubyte", b"PK\3\4", "not an IDX file"),
        ("train-labels-idx1-ubyte", b"", "not an IDX file"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(20, np.uint8))[:-1], "damaged"),
        ("t10k-images-idx3-ubyte.gz", b"\x1f\x8b\x08cut", "cannot be read"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(19, np.uint8)), "as many labels"),
        ("t10k-labels-idx1-ubyte", idx(np.full(20, 10, np.uint8)), "labels 0..9"),
    ],
)
def test_damaged_mnist(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "mnist")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        mnist.multi_mnist(folder)
    message = str(caught.value)
    assert said in message
    assert "http" in message, "where to get it"
    assert "\n" not in message
    if "labels 0..9" not in said and "as many" not in said:
        assert name in message


def test_digits_are_digits() -> None:
    pytest.importorskip("sklearn")
    pairs = mnist.digits()
    assert [len(part.images) for part in pairs] == [5985, 300, 300]
    for part in pairs:
        assert part.images.shape[1:] == (28, 28)
        assert set(part.left_class) == set(part.right_class) == set(range(10))
        assert part.images.max() == 255


# -- CelebA -------------------------------------------------------------------------------------


def test_celeba_from_official_files(tmp_path: Path) -> None:
    folder = write_celeba(tmp_path / "celeba", "00011022")
    train, validation, test = celeba.load(folder)
    assert [len(split.inputs) for split in (train, validation, test)] == [4, 2, 2]
    assert train.inputs.shape == (4, 3, 64, 64)
    brightness = train.inputs.reshape(4, -1).mean(1)
    assert np.abs(brightness - [0, 20, 40, 100]).max() < 2, "the images of partition 0, in order"
    lines = (folder / "list_attr_celeba.txt").read_text().splitlines()[2:]
    wanted = [[word == "1" for word in lines[i].split()[1:]] for i in (3, 4)]
    assert (validation.targets[0] == wanted).all()
    again = celeba.load(folder)
    assert isinstance(again.train.inputs, np.memmap), "decoded once"
    batch = Loader(train, 40, torch.device("cpu")).take(np.array([1, 3]))
    assert len(batch.targets) == 40
    assert batch.targets[7].tolist() == train.targets[0][[1, 3], 7].tolist()
    white = celeba.normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    assert torch.allclose(white, torch.tensor([0.7161, 0.6749, 0.7131]), atol=1e-4)


def _remove(folder: Path) -> None:
    (folder / "img_align_celeba" / "000003.jpg").unlink()


def _cut(folder: Path) -> None:
    path = folder / "img_align_celeba" / "000003.jpg"
    path.write_bytes(path.read_bytes()[:200])


def _replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_remove, "000003.jpg"),
        (_cut, "000003.jpg cannot be read"),
        (_replace("list_attr_celeba.txt", "8\n", "9\n"), "promises 9 images, has 8"),
        (_replace("list_attr_celeba.txt", "Young", "Old"), "40 attributes"),
        (_replace("list_attr_celeba.txt", "000002.jpg", "000002.jpg 1"), "line 4"),
        (_replace("list_eval_partition.txt", "000002.jpg 0", "000002.jpg 7"), "line 2"),
        (_replace("list_eval_partition.txt", "000002.jpg 0\n", ""), "no line for 000002.jpg"),
    ],
)
def test_damaged_celeba(damage: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    folder = write_celeba(tmp_path / "celeba")
    damage(folder)
    with pytest.raises(DataError, match=said):
        celeba.load(folder)
    assert not list((tmp_path / "cache").rglob("*.tmp"))


# -- Cityscapes ---------------------------------------------------------------------------------


def test_cityscapes_from_mtan_arrays(tmp_path: Path) -> None:
    folder = write_cityscapes(tmp_path / "cityscapes")
    splits = cityscapes.load(folder, 7)
    assert [len(split.inputs) for split in splits] == [8, 2, 3]
    numbers = [np.rint(100 * split.inputs[:, 0, 0, 0]).astype(int) for split in splits]
    assert sorted([*numbers[0], *numbers[1]]) == list(range(10)), (
        "train and validation: a partition"
    )
    assert numbers[2].tolist() == [0, 1, 2]
    for split, part, chosen in zip(splits, ("train", "train", "val"), numbers, strict=True):
        for i, number in enumerate(chosen):
            for stored, what in zip(split.targets, ("label", "depth"), strict=True):
                raw = np.load(folder / part / what / f"{number}.npy")
                assert np.allclose(stored[i], raw.reshape(stored[i].shape))
    inputs = torch.from_numpy(np.array(splits.train.inputs[:2]))
    assert cityscapes.normalise(inputs).shape == (2, 3, 16, 32)


def _scene() -> Batch:
    """Twelve times an object, with labels, depths and red as constant as its centre is one."""
    height, width = 64, 128
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(128.0), indexing="ij")
    inside = ((y - 30) / 16) ** 2 + ((x - 80) / 30) ** 2 < 1
    labels = torch.where(inside, 5, 2)
    offsets = torch.where(inside, torch.stack([y - 30, x - 80]), torch.nan)
    image = torch.stack([labels / 10, x / width, y / height], -1)
    one = Batch(image, (labels, labels.float(), offsets))
    return Batch(
        one.inputs.expand(12, -1, -1, -1), tuple(t.expand(12, *t.shape) for t in one.targets)
    )


def test_cityscapes_are_turned_and_mirrored_with_their_targets() -> None:
    batch = _scene()
    images, (labels, depths, offsets) = cityscapes.rotate_and_mirror(
        batch, np.random.default_rng(0)
    )
    assert images.shape == batch.inputs.shape
    seen = labels >= 0
    assert 0.8 < seen.float().mean() < 1.0, "corners come from outside"
    assert torch.equal(depths, torch.where(seen, labels, 0).float())
    assert ((10 * images[..., 0] - labels).abs()[seen] < 0.01).float().mean() > 0.95
    known = ~offsets[:, 0].isnan()
    assert torch.equal(known, labels == 5)
    ys, xs = torch.meshgrid(torch.arange(64.0), torch.arange(128.0), indexing="ij")
    centres = torch.stack([ys, xs]) - offsets
    angles, mirrored = [], 0
    for i in range(12):
        points = centres[i][:, known[i]]
        assert (points - points.mean(1, keepdim=True)).abs().max() < 1.0, "one object, one centre"
        # How the scene's horizontal axis (green) lies in the result.
        middle = images[i, 32, 44:84, 1]
        slope_x = (middle[-1] - middle[0]) * 128 / 39
        middle = images[i, 22:42, 64, 1]
        slope_y = (middle[-1] - middle[0]) * 128 / 19
        angles.append(float(torch.atan2(slope_y, slope_x.abs()).rad2deg()))
        mirrored += int(slope_x < 0)
    assert max(angles) <= 10.1
    assert min(angles) >= -10.1
    assert np.std(angles) > 3
    assert 0 < mirrored < 12


def test_batches_are_augmented_by_their_number_alone() -> None:
    def noise(batch: Batch, rng: np.random.Generator) -> Batch:
        return Batch(batch.inputs + rng.random(), batch.targets)

    loader = Loader(_numbered(23), 1, torch.device("cpu"))
    first, again = (Batches(loader, 5, seed=1, augment=noise) for _ in range(2))
    seen = [first[number].inputs for number in range(9)]
    assert torch.equal(again[6].inputs, seen[6])
    assert len({float(batch.double().frac().flatten()[0]) for batch in seen}) == 9


def test_damaged_cityscapes(tmp_path: Path) -> None:
    folder = write_cityscapes(tmp_path / "cityscapes")
    with pytest.raises(DataError, match="label_19 is missing"):
        cityscapes.load(folder, 19)
    label = folder / "train" / "label" / "4.npy"
    content = label.read_bytes()
    label.write_bytes(content[:100])
    with pytest.raises(DataError, match=r"4\.npy cannot be read"):
        cityscapes.load(folder, 7)
    np.save(label, np.zeros((8, 32)))
    with pytest.raises(DataError, match=r"4\.npy: wanted shape"):
        cityscapes.load(folder, 7)
    np.save(label, np.full((16, 32), 7.0))
    with pytest.raises(DataError, match=r"labels must be -1\.\.6"):
        cityscapes.load(folder, 7)
    label.unlink()
    with pytest.raises(DataError, match=r"4\.npy is missing"):
        cityscapes.load(folder, 7)


def test_instance_centres_against_a_slow_loop(tmp_path: Path) -> None:
    folder = write_cityscapes(tmp_path / "cityscapes", instances=True)
    plain, with_centres = (cityscapes.load(folder, 19, centres=on) for on in (False, True))
    assert [len(split.targets) for split in (*plain, *with_centres)] == [2] * 3 + [3] * 3
    found = with_centres.test.targets[2]
    assert found.shape == (3, 2, 16, 32)
    for i in range(3):
        numbers = np.load(folder / "val" / "instance" / f"{i}.npy")
        for y in range(16):
            for x in range(32):
                offset = found[i, :, y, x]
                if numbers[y, x] < 1000:
                    assert np.isnan(offset).all(), "a class without instances, or a group"
                else:
                    own = np.argwhere(numbers == numbers[y, x]).mean(0)
                    assert np.allclose(offset, (y, x) - own, atol=1e-4)
    assert np.isfinite(found).any()


def test_damaged_instances(tmp_path: Path) -> None:
    folder = write_cityscapes(tmp_path / "cityscapes", instances=True)
    path = folder / "train" / "instance" / "4.npy"
    for wrong in (
        np.full((16, 32), 33_001).astype(np.int16),  # wraps round
        np.full((16, 32), 26_001.5),
        np.zeros((16, 32, 1)),
    ):
        np.save(path, wrong)
        with pytest.raises(DataError, match=r"4\.npy: wanted \[h, w\] of Cityscapes"):
            cityscapes.load(folder, 19, centres=True)
    np.save(path, np.zeros((8, 32)))
    with pytest.raises(DataError, match=r"4\.npy: wanted shape"):
        cityscapes.load(folder, 19, centres=True)
    path.unlink()
    with pytest.raises(DataError, match=r"4\.npy is missing"):
        cityscapes.load(folder, 19, centres=True)
    (folder / "val" / "instance").rename(folder / "val" / "other")
    np.save(path, np.zeros((16, 32)))
    with pytest.raises(DataError, match=r"val/instance is missing; Cityscapes' gtFine_instanceIds"):
        cityscapes.load(folder, 19, centres=True)


def test_damaged_decoded_arrays_are_made_anew(tmp_path: Path) -> None:
    folder = write_cityscapes(tmp_path / "cityscapes")
    wanted = np.array(cityscapes.load(folder, 7).test.inputs)
    for path in (tmp_path / "cache").rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:-50])
    assert (cityscapes.load(folder, 7).test.inputs == wanted).all()


def test_no_folder(tmp_path: Path) -> None:
    for load in (mnist.multi_mnist, celeba.load, lambda folder: cityscapes.load(folder, 7)):
        with pytest.raises(DataError, match="--data-dir"):
            load(None)
        with pytest.raises(DataError, match="no such folder"):
            load(tmp_path / "nowhere")


# -- batches ------------------------------------------------------------------------------------


def _numbered(count: int) -> Split:
    return Split(np.arange(count, dtype=np.float32)[:, None], (np.arange(count, dtype=np.uint8),))


def test_batches_visit_every_sample_once_and_resume_anywhere() -> None:
    loader = Loader(_numbered(23), 1, torch.device("cpu"))
    batches = Batches(loader, 5, seed=1)
    assert batches.per_epoch == 4
    seen = [batches[i].targets[0].tolist() for i in range(8)]
    for epoch in (seen[:4], seen[4:]):
        assert len({number for batch in epoch for number in batch}) == 20
    assert seen[:4] != seen[4:]
    assert Batches(loader, 5, seed=1)[6].targets[0].tolist() == seen[6]
    assert Batches(loader, 5, seed=2)[6].targets[0].tolist() != seen[6]


def test_large_arrays_give_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = Batches(Loader(_numbered(23), 1, torch.device("cpu")), 5, seed=1)
    monkeypatch.setattr("mtrl.supervised.data.RESIDENT", 0)
    mapped = Batches(Loader(_numbered(23), 1, torch.device("cpu")), 5, seed=1)
    assert not mapped.loader.resident
    for number in (0, 1, 2, 7, 8):  # ahead, and a jump
        a, b = resident[number], mapped[number]
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets[0], b.targets[0])
    mapped.close()
