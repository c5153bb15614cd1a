from __future__ import annotations

import gzip
import io
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from supervised_files import idx, write_celeba, write_cityscapes, write_mnist

from mtrl.files.cache import cache_folder
from mtrl.supervised import celeba, cityscapes, decoders, files, mnist, mtan_arrays
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
    train = mnist.read_idx(folder / "train-labels-idx1-ubyte", 1)
    assert (pairs.train.left_class == train[:100]).all(), "left = every image in order"
    assert (pairs.validation.left_class == train[100:]).all()
    again = mnist.multi_mnist(folder)
    assert all((a == b).all() for a, b in zip(pairs.train, again.train, strict=True))
    split = pairs.train.targets_of(("classify_left", "reconstruct_right"))
    assert split.inputs.shape == (100, 1, 28, 28)
    assert split.targets[0].dtype == np.uint8
    pixels = (split.targets[1] * mnist.STD + mnist.MEAN) * 255
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
        assert path.read_bytes() == content, "made again, bitwise the same"

    mnist.make_pairs(images, classes, 1)
    mnist.make_pairs(images, classes, 0, copies=2)
    images[0, 0, 0] ^= 1
    mnist.make_pairs(images, classes, 0)
    monkeypatch.setattr(mnist, "RECIPE", mnist.RECIPE + 1)
    mnist.make_pairs(images, classes, 0)
    assert len(cached_pairs(tmp_path)) == 5, "seed, copies, source and recipe each have their own"
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train-labels-idx1-ubyte", None, "is missing"),
        ("train-labels-idx1-ubyte", b"PK\3\4", "not an IDX file"),
        ("train-labels-idx1-ubyte", b"", "begins with nothing, not 00 00 08 01"),
        ("train-labels-idx1-ubyte", idx(np.zeros((1, 28, 28), np.uint8)), "with 00 00 08 03, not"),
        (
            "t10k-images-idx3-ubyte.gz",
            gzip.compress(idx(np.zeros(20, np.uint8)), mtime=0),
            "not an IDX",
        ),
        ("t10k-images-idx3-ubyte.gz", idx(np.zeros((20, 28, 28), np.uint8)), "cannot be read"),
        (
            "t10k-images-idx3-ubyte.gz",
            gzip.compress(idx(np.zeros((9, 8, 8), np.uint8)), mtime=0),
            "28 x 28",
        ),
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(b"\0\0\x08\3" + b"\xff" * 12, mtime=0),
            "damaged",
        ),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(20, np.uint8))[:-1], "damaged"),
        ("t10k-images-idx3-ubyte.gz", b"\x1f\x8b\x08cut", "cannot be read"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(19, np.uint8)), "as many labels"),
        ("t10k-labels-idx1-ubyte", idx(np.full(20, 10, np.uint8)), "[0] is 10; expected labels"),
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


def _as_png(folder: Path) -> None:
    """A damaged file of another format, for which Pillow raises no OSError."""
    from PIL import Image

    path = folder / "img_align_celeba" / "000003.jpg"
    Image.new("RGB", (178, 218)).save(path, "PNG")
    content = path.read_bytes()
    path.write_bytes(content[:20] + b"\xff" * 9 + content[29:])


def _as_dangling_link(folder: Path) -> None:
    path = folder / "img_align_celeba" / "000003.jpg"
    path.unlink()
    path.symlink_to(folder / "nothing.jpg")


def _as_latin_1(folder: Path) -> None:
    path = folder / "list_attr_celeba.txt"
    path.write_bytes(path.read_bytes().replace(b"000002", b"00000\xe9"))


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
        (_replace("list_eval_partition.txt", "000002.jpg 0", "000001.jpg 2"), "more than once"),
        (_replace("list_attr_celeba.txt", "000002.jpg", "000001.jpg"), "000001.jpg more than once"),
        (_replace("list_attr_celeba.txt", "8\n", "\u00b2\n"), "number of images"),
        (_as_latin_1, r"list_attr_celeba.txt is no text, at byte \d+"),
        (_as_png, "000003.jpg cannot be read"),
        (_as_dangling_link, "000003.jpg cannot be read"),
    ],
)
def test_damaged_celeba(damage: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    folder = write_celeba(tmp_path / "celeba")
    damage(folder)
    with pytest.raises(DataError, match=said) as caught:
        celeba.load(folder)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


def test_celeba_lists_as_other_systems_write_them(tmp_path: Path) -> None:
    """Line ends of Windows, a byte-order mark, blank lines, and the hidden files of macOS."""
    folder = write_celeba(tmp_path / "celeba")
    wanted = celeba.load(folder)
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        text = (folder / name).read_text().replace("\n", "\r\n")
        (folder / name).write_bytes(f"\ufeff{text}\r\n".encode())
    (folder / "img_align_celeba" / "._000003.jpg").write_bytes(b"Mac OS X")
    for a, b in zip(wanted, celeba.load(folder), strict=True):
        assert (a.inputs == b.inputs).all()
        assert (a.targets[0] == b.targets[0]).all()


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
    assert mtan_arrays.normalise(inputs).shape == (2, 3, 16, 32)


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


def _but(value: float, *channels: int) -> NDArray[np.float64]:
    """Zeros [16, 32, ...] with this value at [3, 17, 1], or the last channel there is."""
    values = np.zeros((16, 32, *channels))
    values[(3, 17, *(min(1, n - 1) for n in channels))] = value
    return values


@pytest.mark.parametrize(
    ("what", "values", "said"),
    [
        ("label", np.zeros((8, 32)), "expected shape (16, 32) of numbers, found (8, 32) of"),
        ("label", np.zeros((32, 16)), "expected shape"),
        ("label", np.zeros((16, 32), bool), "of bool"),
        ("label", np.full((16, 32), "road"), "expected shape"),
        ("label", np.full((16, 32), 19.0), "[0, 0] is 19.0; labels must be -1..18"),
        ("label", _but(256), "[3, 17] is 256.0; labels must be -1..18"),
        ("label", _but(256).astype(np.uint16), "[3, 17] is 256; labels must be -1..18"),
        ("label", _but(255).astype(np.uint8), "[3, 17] is 255; labels must be -1..18"),
        ("label", _but(np.nan), "[3, 17] is nan; labels"),
        ("label", _but(-np.inf), "[3, 17] is -inf; labels"),
        ("label", _but(-2), "[3, 17] is -2.0; labels"),
        ("label", _but(1.5)[..., None], "[3, 17, 0] is 1.5; labels"),
        ("image", _but(255.0, 3), "[3, 17, 1] is 255.0; images must be in 0..1"),
        ("image", _but(255, 3).astype(np.uint8), "[3, 17, 1] is 255; images must be in 0..1"),
        ("image", _but(1.01, 3), "[3, 17, 1] is 1.01; images"),
        ("image", _but(-0.5, 3), "[3, 17, 1] is -0.5; images"),
        ("image", _but(np.nan, 3), "[3, 17, 1] is nan; images"),
        ("image", np.zeros((3, 16, 32)), "found (3, 16, 32)"),
        ("depth", _but(np.inf, 1), "[3, 17, 0] is inf; depths must be finite"),
        ("depth", _but(np.nan), "[3, 17] is nan; depths must be finite"),
        ("depth", _but(1e39), "[3, 17] is 1e+39; depths must be finite"),
        ("depth", np.zeros((16, 32, 3)), "expected shape"),
        ("instance", _but(33_001).astype(np.int16), "[3, 17] is -32535; Cityscapes' instance"),
        ("instance", _but(26_001.5), "[3, 17] is 26001.5; Cityscapes' instance"),
        ("instance", _but(np.nan), "[3, 17] is nan; Cityscapes' instance"),
        ("instance", _but(np.inf), "[3, 17] is inf; Cityscapes' instance"),
        ("instance", _but(34_000), "[3, 17] is 34000.0; Cityscapes' instance"),
        ("instance", np.zeros((16, 32, 1)), "expected shape"),
        ("instance", np.zeros((8, 32)), "expected shape"),
    ],
)
def test_values_that_do_not_belong(
    what: str, values: NDArray[Any], said: str, tmp_path: Path
) -> None:
    """One line that names the file, the place and the value as it is stored."""
    folder = write_cityscapes(tmp_path / "cityscapes", instances=True)
    name = "label_19" if what == "label" else what
    path = folder / "train" / name / "4.npy"
    np.save(path, values)
    with pytest.raises(DataError) as caught:
        cityscapes.load(folder, 19, centres=True)
    message = str(caught.value)
    assert str(path) in message
    assert said in message
    assert "\n" not in message


def _npy(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"junk", "cannot be read"),
        (_npy(np.zeros((16, 32)))[:100], "cannot be read"),
        (_npy(np.zeros((16, 32)))[:-8], "cannot be read"),
        (_npy(np.zeros((16, 32))).replace(b"(16, 32)", b"(16, 3("), "cannot be read"),
        (_npy(np.zeros((16, 32))).replace(b"(16, 32)", b"(8**32,)"), "cannot be read"),
        (_npy(np.zeros((16, 32))).replace(b"(16, 32), ", b"(9999999,)"), "cannot be read"),
        (gzip.compress(_npy(np.zeros((16, 32))), mtime=0), "cannot be read"),
    ],
)
@pytest.mark.parametrize("name", ["image/0.npy", "label/4.npy"])
def test_damaged_arrays(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    path = write_cityscapes(tmp_path / "cityscapes") / "train" / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        cityscapes.load(tmp_path / "cityscapes", 7)
    message = str(caught.value)
    assert str(path) in message
    assert said in message
    assert "\n" not in message


def test_wrong_files_of_cityscapes(tmp_path: Path) -> None:
    folder = write_cityscapes(tmp_path / "cityscapes")

    def refused(said: str, classes: int = 7) -> None:
        with pytest.raises(DataError, match=said):
            cityscapes.load(folder, classes)

    refused("label_19 is missing", 19)
    label = folder / "train" / "label"
    (label / "4.npy").rename(label / "10.npy")
    refused(r"label/4\.npy is missing")
    (label / "10.npy").rename(label / "4.npy")
    shutil.copy(label / "4.npy", label / "10.npy")
    refused(r"label/10\.npy has no image")
    (label / "10.npy").rename(label / "4 (copy).npy")
    refused(r"4 \(copy\)\.npy: must be called 0\.npy")
    (label / "4 (copy).npy").unlink()
    for path in (folder / "val" / "depth").iterdir():
        np.save(path, np.zeros((16, 32)))
    refused("val/depth: no pixel of these 3 samples has a value")
    image = folder / "val" / "image" / "0.npy"
    for shape in ((16, 30, 3), (0, 32, 3), (16, 32), (16, 32, 4), (3, 16, 32)):
        np.save(image, np.zeros(shape))
        refused(r"0\.npy: must be \[h, w, 3\] with h and w divisible by 8")
    np.save(image, np.zeros((8, 16, 3)))
    refused(r"val/label/0\.npy: expected shape \(8, 16\)")


def test_hidden_files_are_no_data(tmp_path: Path) -> None:
    folder = write_cityscapes(tmp_path / "cityscapes", instances=True)
    for part in ("train", "val"):
        for what in (folder / part).iterdir():
            for name in ("._0.npy", ".DS_Store", "Thumbs.db", "desktop.ini", ".nfs0001", ".3.npy"):
                (what / name).write_bytes(b"Mac OS X")
    splits = cityscapes.load(folder, 19, centres=True)
    assert [len(split.inputs) for split in splits] == [8, 2, 3]


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


def test_missing_instances(tmp_path: Path) -> None:
    folder = write_cityscapes(tmp_path / "cityscapes", instances=True)
    (folder / "train" / "instance" / "4.npy").unlink()
    with pytest.raises(DataError, match=r"4\.npy is missing"):
        cityscapes.load(folder, 19, centres=True)
    (folder / "train" / "instance").rename(folder / "train" / "other")
    with pytest.raises(DataError, match=r"instance is missing; Cityscapes' gtFine_instanceIds"):
        cityscapes.load(folder, 19, centres=True)


# -- the cache ------------------------------------------------------------------------------------


def _smaller(path: Path) -> None:
    """The time stays."""
    before = path.stat().st_mtime_ns
    np.save(path, np.full((16, 32), 3, np.int32))
    os.utime(path, ns=(before, before))


def _later(path: Path) -> None:
    """By a nanosecond; the size stays."""
    before = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    os.utime(path, ns=(before, before + 1))


@pytest.mark.parametrize("change", [_smaller, _later])
@pytest.mark.parametrize("position", [0, 4, 7])
def test_a_change_of_any_file_is_seen(
    position: int, change: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = write_cityscapes(tmp_path / "cityscapes")
    before = np.array(cityscapes.load(folder, 7).train.targets[0])
    numbers = cityscapes.load(folder, 7).train.inputs[:, 0, 0, 0]
    path = folder / "train" / "label" / f"{round(100 * float(numbers[position]))}.npy"
    labels = np.load(path)
    labels[-1, -1] = 5
    np.save(path, labels)
    cityscapes.load(folder, 7)
    change(path)
    after = cityscapes.load(folder, 7).train.targets[0]
    assert (after[position] == np.load(path)).all()
    others = [i for i in range(8) if i != position]
    assert (after[others] == before[others]).all()


def _decoded_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.npy"))


def test_decoded_arrays_are_kept_under_all_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cityscapes(tmp_path / "cityscapes", instances=True)
    shutil.rmtree(folder / "train" / "label")
    shutil.rmtree(folder / "val" / "label")
    wanted = cityscapes.load(folder, 19)
    kept = _decoded_files(tmp_path)
    assert len(kept) == 9
    moved = tmp_path / "moved"
    folder.rename(moved)
    with monkeypatch.context() as patch:
        patch.setattr(decoders.Labels, "__call__", None)  # not decoded a second time
        found = cityscapes.load(moved, 19)
    assert (found.train.inputs == wanted.train.inputs).all()
    assert _decoded_files(tmp_path) == kept, "what was moved is the same"
    labels = moved / "val" / "label_19"
    again = [
        files.decoded(moved, sorted(labels.iterdir()), decode)
        for decode in (
            decoders.Labels((16, 32), 19),
            decoders.Labels((16, 32), 20),
            decoders.Labels((16, 32), 19, recipe=decoders.RECIPE + 1),
            decoders.Depths((16, 32)),
        )
    ]
    assert all((array == again[0]).all() for array in again)
    assert len(_decoded_files(tmp_path)) == len(kept) + 3, "classes, recipe and kind count"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-50],
        lambda content: content[:-1],
        lambda content: content[:50],
        lambda _: b"",
        lambda _: b"junk",
        lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
        lambda content: content.replace(b"<f4", b"<i4").replace(b"(3, ", b"(1, "),
    ],
)
def test_damaged_decoded_arrays_are_made_again(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    folder = write_cityscapes(tmp_path / "cityscapes")
    wanted = cityscapes.load(folder, 7)
    contents = {path: path.read_bytes() for path in _decoded_files(tmp_path)}
    for path, content in contents.items():
        path.unlink()  # the arrays above show what was there
        path.write_bytes(damage(content))
    for a, b in zip(wanted, cityscapes.load(folder, 7), strict=True):
        assert (a.inputs == b.inputs).all()
        assert all((x == y).all() for x, y in zip(a.targets, b.targets, strict=True))
    assert {path: path.read_bytes() for path in _decoded_files(tmp_path)} == contents
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


def _impossible(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "cache"


@pytest.mark.parametrize("where", [_impossible, lambda tmp_path: tmp_path / ("x" * 300)])
def test_without_a_usable_cache(
    where: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The data are read all the same, and a line says where none can be kept."""
    city = write_cityscapes(tmp_path / "cityscapes")
    digits = write_mnist(tmp_path / "mnist")
    wanted = cityscapes.load(city, 7), mnist.multi_mnist(digits)
    monkeypatch.setenv("MTRL_CACHE", str(where(tmp_path)))
    found = cityscapes.load(city, 7), mnist.multi_mnist(digits)
    assert (found[0].train.inputs == wanted[0].train.inputs).all()
    assert (found[0].train.targets[1] == wanted[0].train.targets[1]).all()
    assert (found[1].train.images == wanted[1].train.images).all()
    (line,) = capsys.readouterr().err.splitlines()
    assert str(where(tmp_path)) in line
    assert "MTRL_CACHE" in line


def test_a_full_disk_leaves_nothing_in_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    city = write_cityscapes(tmp_path / "cityscapes")
    digits = write_mnist(tmp_path / "mnist")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        found = cityscapes.load(city, 7), mnist.multi_mnist(digits)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    wanted = cityscapes.load(city, 7), mnist.multi_mnist(digits)
    assert (found[0].test.inputs == wanted[0].test.inputs).all()
    assert (found[1].test.images == wanted[1].test.images).all()


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for chosen, wanted in (
        ("/data/cache", "/data/cache"),
        ("~/cache", f"{tmp_path}/cache"),
        ("", f"{tmp_path}/.cache/mtrl"),
    ):
        monkeypatch.setenv("MTRL_CACHE", chosen)
        assert cache_folder() == Path(wanted)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/mtrl")


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
