"""Every kind of source that is read into arrays: images, and the data sets of the frameworks."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from secateur import streams
from secateur.datasets import load
from secateur.errors import SecateurError

CLASSES = ("ash", "birch", "cedar")


def images(n, shape=(6, 5, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def refusal(spec, **options):
    """The one line with which `spec` is refused."""
    with pytest.raises(SecateurError) as refused:
        load(spec, **options)
    message = str(refused.value)
    assert "fix: " in message and "\n" not in message
    return message


def rows(*splits):
    """The samples of splits as a set, for arrays whose order says nothing."""
    return {x.tobytes() for split in splits if split for x in split.x}


# --- tf.data --------------------------------------------------------------------------------------


@pytest.fixture
def tf():
    return pytest.importorskip("tensorflow")


def batches_and_more(tf, x, y):
    whole = tf.data.Dataset.from_tensor_slices((x, y))
    return {
        "batches": whole.batch(7),
        "full batches": whole.batch(6, drop_remainder=True),
        "one batch": whole.batch(100),
        "samples": whole,
        "shuffled": whole.shuffle(100, seed=1).batch(7),
        "unknown length": whole.filter(lambda x, y: True).batch(7),
    }


@pytest.mark.parametrize(
    "form", ["batches", "full batches", "one batch", "samples", "shuffled", "unknown length"]
)
@pytest.mark.parametrize("one_hot", [False, True])
def test_tf_data(form, one_hot, tf):
    x, y = images(30), np.arange(30) % 3
    data = load(batches_and_more(tf, x, np.eye(3)[y] if one_hot else y)[form])
    assert data.name == "tf.data.Dataset"
    assert data.classes == 3
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 6)
    label_of = {
        sample.astype(np.float32).tobytes(): label for sample, label in zip(x, y, strict=True)
    }
    assert rows(data.train, data.validation, data.test) == set(label_of)
    for split in (data.train, data.test):
        found = split.y.argmax(axis=1) if one_hot else split.y
        assert found.tolist() == [label_of[sample.tobytes()] for sample in split.x]
    assert any("x left in 0..255; scale=255" in note for note in data.notes)


def test_shuffling_changes_neither_the_splits_nor_the_hash(tf):
    whole = tf.data.Dataset.from_tensor_slices((images(50), np.arange(50) % 3))
    first, again = (load(whole.shuffle(50, seed=seed).batch(8)) for seed in (1, 2))
    assert first.sha256 == again.sha256
    for name in ("train", "validation", "test"):
        assert np.array_equal(getattr(first, name).x, getattr(again, name).x)
        assert np.array_equal(getattr(first, name).y, getattr(again, name).y)


def test_a_pair_of_tf_data_sets_keeps_the_order_of_the_test_part(tf):
    x = np.linspace(0, 1, 40, dtype=np.float32).reshape(20, 2)
    train, test = (tf.data.Dataset.from_tensor_slices((part, part[:, :1])) for part in (x, x[::-1]))
    data = load((train.batch(6), test.batch(6)))
    assert np.array_equal(data.test.x, x[::-1])
    assert len(data.train) + len(data.validation) == 20
    assert "train: 20 samples from 4 batches of a tf.data.Dataset, in the order" in str(data.notes)
    mixed = load((train.batch(6), (x[:5], x[:5, :1])))
    assert np.array_equal(mixed.test.x, x[:5])
    assert load((train.batch(6), None)).sha256 == load(train.batch(6)).sha256


def test_labels_may_be_missing_in_tf_data(tf):
    data = load(tf.data.Dataset.from_tensor_slices(images(30)).batch(8), scale="auto")
    assert data.test.y is None
    assert rows(data.train, data.validation, data.test) == {
        x.tobytes() for x in images(30).astype(np.float32) / np.float32(255)
    }
    message = refusal(tf.data.Dataset.from_tensor_slices(images(30)))
    assert "a batch or a sample" in message and ".batch(32), without drop_remainder" in message


def cut(x, y):
    return x[:, :3], y


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.repeat().batch(4), r"an infinite tf.data.Dataset.*take\(n\)"),
        (lambda d: d.batch(4).map(lambda x, y: {"x": x, "y": y}), r"dictionaries \(x, y\).*map it"),
        (lambda d: d.batch(4).map(lambda x, y: ((x, x), y)), "several inputs or targets"),
        (lambda d: d.batch(4).map(lambda x, y: ({"a": x}, y)), "several inputs or targets"),
        (lambda d: d.batch(4).map(lambda x, y: (x, y, y)), "3 parts .x, y, sample weights"),
        (lambda d: d.map(lambda x, y: ("a", y)).batch(4), "x of dtype object"),
        (lambda d: d.take(0).batch(4), "a tf.data.Dataset without samples"),
        (
            lambda d: d.batch(4).concatenate(d.batch(4).map(cut)),
            "x of shapes .* and .* a sample",
        ),
        (lambda d: d.batch(4).map(lambda x, y: (x, y[:-1])), "y of shape"),
    ],
)
def test_tf_data_that_cannot_be_gathered(change, message, tf):
    whole = tf.data.Dataset.from_tensor_slices((images(10), np.arange(10)))
    assert re.search(message, refusal(change(whole)))


def test_what_fails_inside_tf_data_names_the_element(tf):
    data = tf.data.Dataset.range(10).map(lambda x: (x, 6 // (x - 3))).batch(2)
    assert "fails at element 1 (InvalidArgumentError" in refusal(data)


# --- memory ---------------------------------------------------------------------------------------


def counted(tf, n, seen):
    def generate():
        for number in range(n):
            seen.append(number)
            yield np.zeros((4, 1024), np.uint8), np.zeros(4, np.int64)

    spec = (tf.TensorSpec((None, 1024), tf.uint8), tf.TensorSpec((None,), tf.int64))
    return tf.data.Dataset.from_generator(generate, output_signature=spec)


def test_what_passes_the_memory_limit_is_refused_while_gathering(tf, monkeypatch):
    monkeypatch.setattr(streams, "MEMORY_LIMIT", 100_000)
    seen = []
    message = refusal(counted(tf, 1000, seen))
    assert "GiB or more in memory" in message and "take(n)" in message
    assert "model.fit with Prune(...).callback(), which streams" in message
    assert len(seen) < 20
    assert len(load(counted(tf, 5, [])).train) == 14


def test_a_known_length_is_refused_after_the_first_batch(tf, monkeypatch):
    monkeypatch.setattr(streams, "MEMORY_LIMIT", 3 * 2**30)
    seen = []
    data = counted(tf, 50, seen).apply(tf.data.experimental.assert_cardinality(10**6))
    assert "this tf.data.Dataset, 15.3 GiB or more in memory, received" in refusal(data)
    assert len(seen) < 10


# --- DataLoader -----------------------------------------------------------------------------------


@pytest.fixture
def torch_data():
    torch = pytest.importorskip("torch")
    return torch, torch.utils.data


def test_data_loader(torch_data):
    torch, data = torch_data
    x, y = torch.rand(30, 3, 6, 5), torch.arange(30) % 3
    sets = data.TensorDataset(x, y)
    loaded = load(data.DataLoader(sets, batch_size=8, shuffle=True))
    assert loaded.name == "DataLoader" and loaded.classes == 3
    assert loaded.train.x.shape[1:] == (3, 6, 5)  # channels as they come
    every = rows(loaded.train, loaded.validation, loaded.test)
    assert every == {sample.tobytes() for sample in x.numpy()}
    pair = load((data.DataLoader(sets, batch_size=8), data.DataLoader(sets, batch_size=4)))
    assert np.array_equal(pair.test.x, x.numpy()) and np.array_equal(pair.test.y, y.numpy())
    again = load(data.DataLoader(sets, batch_size=5, shuffle=True))
    assert again.sha256 == loaded.sha256


def test_data_loader_without_labels_batches_or_length(torch_data):
    torch, data = torch_data

    class Endless(data.IterableDataset):
        def __init__(self, n):
            self.n = n

        def __iter__(self):
            return (torch.full((2,), float(i), requires_grad=True) for i in range(self.n))

    class Samples(data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            return torch.full((4,), index, dtype=torch.bfloat16), index

    unlabelled = load(data.DataLoader(data.TensorDataset(torch.rand(10, 4)), batch_size=3))
    assert unlabelled.test.y is None and unlabelled.train.x.shape[1:] == (4,)
    assert len(load((None, data.DataLoader(Endless(9), batch_size=2))).test) == 9
    single = load((None, data.DataLoader(Samples(), batch_size=None)))
    assert single.test.x[:, 0].tolist() == single.test.y.tolist() == list(range(10))
    left = load((None, data.DataLoader(Samples(), batch_size=4, drop_last=True)))
    assert len(left.test) == 8 and "drop_last=True" in str(left.notes)


def test_data_loaders_that_cannot_be_gathered(torch_data):
    torch, data = torch_data

    class Broken(data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            if index == 7:
                raise OSError("file 7 is gone\nreally")
            return {"image": torch.zeros(3)} if index > 7 else torch.zeros(3)

    assert "fails at element 3 (OSError: file 7 is gone)" in refusal(data.DataLoader(Broken(), 2))
    dictionaries = data.DataLoader(Broken(), sampler=[8, 9])
    assert "DataLoader of dictionaries (image)" in refusal(dictionaries)
    loader = data.DataLoader(data.TensorDataset(torch.zeros(9, 2)))
    assert "train part of <class 'numpy.ndarray'>" in refusal((np.zeros(9), loader))
    assert "test part of <class 'numpy.ndarray'>" in refusal((loader, np.zeros(9)))


# --- PyDataset ------------------------------------------------------------------------------------


@pytest.fixture
def py_dataset():
    """A PyDataset over given batches, that fills the same memory again for each."""
    keras = pytest.importorskip("keras")

    class Batches(keras.utils.PyDataset):
        def __init__(self, parts, count="all"):
            super().__init__()
            self.parts, self.count = parts, count
            self.ready = False

        @property
        def num_batches(self):
            return len(self.parts) if self.count == "all" else self.count

        def on_epoch_begin(self):
            self.ready = True

        def __getitem__(self, index):
            assert self.ready
            if not isinstance(self.parts[index], tuple):
                return self.parts[index]
            x, y = self.parts[index]
            if index and x.shape == self.parts[0][0].shape:
                self.parts[0][0][:] = x
                x = self.parts[0][0]
            return x, y

    return Batches


def test_py_dataset(py_dataset):
    x, y = np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(10)
    parts = [(x[i : i + 4].copy(), y[i : i + 4]) for i in range(0, 10, 4)]
    data = load((None, py_dataset(parts)))
    assert data.name == "PyDataset" and data.classes == 10
    assert np.array_equal(data.test.x, x) and np.array_equal(data.test.y, y)
    assert "test: 10 samples from 3 batches of a PyDataset" in data.notes
    alone = load(py_dataset([(x[:4].copy(), y[:4]), (x[4:].copy(), y[4:])]))
    assert rows(alone.train, alone.validation, alone.test) == {sample.tobytes() for sample in x}


def test_py_datasets_that_cannot_be_gathered(py_dataset):
    x, y = np.zeros((4, 2)), np.zeros(4, int)
    assert "infinite PyDataset (num_batches None)" in refusal(py_dataset([(x, y)], None))
    assert "labels in some batches" in refusal(py_dataset([(x, y), x]))
    assert "y of shape (3,)" in refusal(py_dataset([(x, y[:3])]))
    assert "x with 8 NaN" in refusal(py_dataset([x * np.nan]))
    assert "without samples" in refusal(py_dataset([]))


def test_no_framework_is_imported_to_recognise_its_data():
    code = """
import sys
from secateur.datasets import load
class DataLoader: pass
try:
    load(DataLoader())
except ValueError as error:
    assert "pass (x, y)" in str(error), error
assert not {"keras", "tensorflow", "torch", "PIL"} & set(sys.modules)
"""
    root = Path(__file__).resolve().parents[1]
    env = {**os.environ, "PYTHONPATH": str(root / "src")}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120)


# --- folders of images ----------------------------------------------------------------------------


@pytest.fixture
def pillow():
    return pytest.importorskip("PIL.Image", reason="install the extra 'images' (Pillow)")


@pytest.fixture
def grow(pillow):
    """Write `n` images of each class under a folder; returns them, in the order of reading."""

    def write(root, n=4, shape=(6, 5, 3), suffix="png", classes=CLASSES, seed=0):
        every = images(n * len(classes), shape, seed)
        for number, pixels in enumerate(every):
            folder = root / classes[number // n]
            folder.mkdir(parents=True, exist_ok=True)
            pillow.fromarray(pixels).save(folder / f"{number % n:02d}.{suffix}")
        return every

    return write


def test_a_folder_with_train_and_test(grow, tmp_path):
    train, test = grow(tmp_path / "trees" / "train"), grow(tmp_path / "trees" / "test", 2, seed=1)
    (tmp_path / "trees" / "train" / "ash" / "notes.txt").write_text("mine")
    (tmp_path / "trees" / "train" / "ash" / ".hidden.png").write_text("not looked at")
    (tmp_path / "trees" / "val" / "ash").mkdir(parents=True)
    data = load(tmp_path / "trees")
    assert data.name == "trees"
    assert np.array_equal(data.test.x, test.astype(np.float32) / np.float32(255))
    assert data.test.y.tolist() == [0, 0, 1, 1, 2, 2]
    every = (train.astype(np.float32) / np.float32(255)).reshape(12, -1)
    for split in (data.train, data.validation):
        for x, y in zip(split.x, split.y, strict=True):
            assert np.flatnonzero((every == x.ravel()).all(axis=1)) // 4 == y
    for note in (
        "classes: 0 ash, 1 birch, 2 cedar",
        "x divided by 255",
        "train: 1 files that are no images left out",
        "left out beside train and test: val",
    ):
        assert note in data.notes
    assert load(str(tmp_path / "trees")).sha256 == data.sha256
    pair = load((tmp_path / "trees" / "train", str(tmp_path / "trees" / "test")))
    assert pair.sha256 == data.sha256
    assert load(tmp_path / "trees", scale=1).test.x.max() == test.max()


def test_a_folder_of_classes(grow, tmp_path):
    grow(tmp_path, n=10)
    data = load(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 6)
    assert np.bincount(data.test.y).tolist() == [2, 2, 2]
    assert data.classes == 3


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "jpg", "JPEG", "webp"])
def test_kinds_of_image_files(suffix, grow, pillow, tmp_path):
    shape = (6, 5) if suffix == "gif" else (6, 5, 3)
    pixels = grow(tmp_path / "test", n=1, shape=shape, suffix=suffix)
    data = load(tmp_path, scale=1)
    assert data.train is None
    assert data.test.x.shape == (3, *shape)
    if suffix in ("png", "bmp", "gif"):
        assert np.array_equal(data.test.x, pixels)


def test_grey_only_if_all_are_grey(grow, tmp_path):
    grey = grow(tmp_path, shape=(6, 5))
    assert load(tmp_path, scale=1).test.x.shape[1:] == (6, 5)
    colour = grow(tmp_path, shape=(6, 5, 3), classes=["yew"])
    every = load(tmp_path, scale=1, validation_split=0)
    as_rgb = np.concatenate([np.repeat(grey[..., None], 3, axis=-1), colour])
    assert rows(every.train, every.test) == {x.tobytes() for x in as_rgb.astype(np.float32)}


def test_resizing(grow, pillow, tmp_path):
    grow(tmp_path / "a", classes=["ash"])
    grow(tmp_path / "a", classes=["birch"], shape=(12, 10, 3))
    message = refusal(tmp_path / "a")
    first, second = tmp_path / "a" / "ash" / "00.png", tmp_path / "a" / "birch" / "00.png"
    assert f"{first} of 6x5 and {second} of 12x10" in message
    assert "image_size=(height, width)" in message
    data = load(tmp_path / "a", image_size=(3, 4), validation_split=0, scale=1)
    assert data.train.x.shape[1:] == (3, 4, 3)
    assert "images resized to 3x4, bilinear" in data.notes
    with pillow.open(first) as image:
        expected = np.float32(np.asarray(image.resize((4, 3), pillow.Resampling.BILINEAR)))
    assert expected.tobytes() in rows(data.train, data.test)


@pytest.mark.parametrize("size", [(3,), (0, 4), 96, "96", (3.0, 4), (True, 4), (-3, 4)])
def test_sizes_that_are_none(size):
    assert "image_size=" in refusal("digits", image_size=size)


def test_a_size_for_what_holds_no_images():
    assert "image_size with digits received" in refusal("digits", image_size=(8, 8))


@pytest.mark.parametrize("content", [b"", b"<html>", "cut"])
def test_a_damaged_image_is_named(content, grow, tmp_path):
    grow(tmp_path, shape=(60, 50, 3))
    victim = tmp_path / "birch" / "02.png"
    victim.write_bytes(victim.read_bytes()[:-4000] if content == "cut" else content)
    assert f"{victim}, damaged (" in refusal(tmp_path)


def test_16_bit_images_are_refused(grow, pillow, tmp_path):
    grow(tmp_path)
    pillow.fromarray(np.full((6, 5), 40_000, np.uint16)).save(tmp_path / "ash" / "deep.png")
    assert "deep.png of mode I;16 received, expected an 8-bit image" in refusal(tmp_path)


def test_folders_that_are_laid_out_otherwise(grow, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "0 images outside of class folders" in refusal(empty)
    grow(tmp_path / "a")
    (tmp_path / "a" / "loose.png").write_bytes(b"")
    assert "1 images outside of class folders" in refusal(tmp_path / "a")
    grow(tmp_path / "b")
    (tmp_path / "b" / "yew").mkdir()
    assert "yew with 0 images and 0 folders" in refusal(tmp_path / "b")
    grow(tmp_path / "c" / "ash")
    grow(tmp_path / "c")
    assert "ash with 4 images and 3 folders" in refusal(tmp_path / "c")
    grow(tmp_path / "d" / "train")
    grow(tmp_path / "d")
    assert "with images in ash, birch, cedar, beside train" in refusal(tmp_path / "d")
    grow(tmp_path / "e" / "train")
    grow(tmp_path / "e" / "test", classes=["ash", "yew"])
    assert "the training part lacks (yew)" in refusal(tmp_path / "e")
    assert "nowhere' received" in refusal((tmp_path / "d" / "train", tmp_path / "nowhere"))
    assert "expected digits, mnist" in refusal(tmp_path / "nowhere")


def test_too_many_images_for_memory(grow, tmp_path, monkeypatch):
    grow(tmp_path)
    monkeypatch.setattr(streams, "MEMORY_LIMIT", 1000)
    assert "12 images of 6x5, 0.0 GiB or more" in refusal(tmp_path)
    assert len(load(tmp_path, image_size=(2, 2)).test) == 3


def test_missing_pillow_names_the_extra(grow, tmp_path, monkeypatch):
    grow(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert "pip install 'secateur[images]'" in refusal(tmp_path)


# --- JPEG in a .npz -------------------------------------------------------------------------------


@pytest.fixture
def plants(pillow, tmp_path, monkeypatch):
    """A small `plant-leaves-jpeg.npz`, its arrays, and its images as Pillow decodes them."""
    arrays, decoded = {"classes": np.array(CLASSES)}, {}
    for part, n in (("train", 12), ("test", 6)):
        files = []
        for pixels in images(n, (16, 16, 3), seed=n):
            pillow.fromarray(pixels).save(file := io.BytesIO(), "JPEG")
            files.append(file.getvalue())
        arrays[f"jpeg_{part}"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"offsets_{part}"] = np.cumsum([0, *map(len, files)])
        arrays[f"y_{part}"] = (np.arange(n) % 3).astype(np.uint8)
        decoded[part] = np.stack([np.asarray(pillow.open(io.BytesIO(file))) for file in files])
    path = tmp_path / "plant-leaves-jpeg.npz"
    np.savez(path, **arrays)
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path))
    return path, arrays, decoded


def test_plant_leaves(plants):
    path, _, decoded = plants
    data = load("plant-leaves")
    assert data.name == "plant-leaves"
    assert np.array_equal(data.test.x, decoded["test"].astype(np.float32) / np.float32(255))
    assert data.test.y.tolist() == [0, 1, 2] * 2
    assert "classes: 0 ash, 1 birch, 2 cedar" in data.notes
    own = load(path)
    assert own.name == path.name and own.sha256 == data.sha256
    assert np.array_equal(own.test.x, decoded["test"])
    assert load(path, image_size=(8, 8)).test.x.shape == (6, 8, 8, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets_test": None}, "unreadable (offsets_test)"),
        ({"offsets_test": np.zeros(7, int)}, "unreadable (offsets_test)"),
        ({"offsets_test": np.zeros((7, 2), int)}, "unreadable (offsets_test)"),
        ({"jpeg_test": np.zeros(9)}, "unreadable (offsets_test)"),
        ({"jpeg_test": np.array(3, np.uint8)}, "unreadable (offsets_test)"),
        ({"y_test": np.zeros(3, int)}, "6 samples with y of shape (3,)"),
        ({"zeros": True}, "image 0 of jpeg_test in"),
    ],
)
def test_damaged_files_of_jpegs(change, message, plants):
    path, arrays, _ = plants
    if change.pop("zeros", False):
        change["jpeg_test"] = np.zeros_like(arrays["jpeg_test"])
    changed = {**arrays, **change}
    np.savez(path, **{key: value for key, value in changed.items() if value is not None})
    assert message in refusal("plant-leaves")


def test_missing_plant_leaves_name_the_places(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path / "own"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    message = refusal("plant-leaves")
    assert str(tmp_path / "own" / "plant-leaves-jpeg.npz") in message
    assert "load_data" not in message


@pytest.mark.skipif(
    not (Path(os.environ.get("SECATEUR_DATA", "")) / "plant-leaves-jpeg.npz").is_file(),
    reason="SECATEUR_DATA names no folder with plant-leaves-jpeg.npz",
)
def test_real_plant_leaves():
    data = load("plant-leaves")
    sizes = {"train": 2_103, "validation": 234, "calibration": 500, "test": 584}
    assert data.describe()["sizes"] == sizes
    assert data.describe()["shape"] == [96, 96, 3] and data.classes == 12
    assert "4 Common_wheat" in str(data.notes)


def test_test_samples_that_stand_in_the_training_part_are_counted():
    x, new = np.random.default_rng(0).random((2, 40, 3, 2))
    y, test = np.arange(40) % 4, np.concatenate([x[5:8], new[:7]])
    assert "test: 3 of 10 samples stand in the training" in str(
        load(((x, y), (test, y[:10]))).notes
    )
    assert "stand in the training" not in str(load((x, y)).notes)
