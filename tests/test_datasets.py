import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from secateur.datasets import CALIBRATION, SPLITS, Data, Split, fit_to, load
from secateur.errors import SecateurError

PARTS = {"x_train": 60, "y_train": 60, "x_test": 20, "y_test": 20}


def numbered(n, shape=(2, 2), start=0):
    """Samples that can be told apart: every value of sample i is start + i."""
    return np.broadcast_to(
        np.arange(start, start + n, dtype=np.float32).reshape(n, *([1] * len(shape))), (n, *shape)
    ).copy()


def numbers(split):
    return set() if split is None else set(split.x.reshape(len(split), -1)[:, 0].tolist())


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8)


@pytest.fixture
def mnist_like(tmp_path, monkeypatch):
    """A folder with a small `mnist.npz` in Keras's layout, where a user would put it."""
    save_mnist_like(tmp_path / "mnist.npz")
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path))
    return tmp_path


def save_mnist_like(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = {key: (np.arange(n) % 10).astype(np.uint8) for key, n in PARTS.items()}
    np.savez(
        path,
        x_train=images(60),
        y_train=labels["y_train"],
        x_test=images(20, 1),
        y_test=labels["y_test"],
    )


# --- the splits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("with_test", [False, True])
@pytest.mark.parametrize("limit", [None, 15])
def test_splits_are_disjoint_and_complete(seed, with_test, limit):
    train = (numbered(100), np.arange(100) % 3)
    test = (numbered(30, start=1000), np.arange(30) % 3)
    data = load((train, test) if with_test else train, seed=seed, limit=limit)
    found = {name: numbers(getattr(data, name)) for name in SPLITS}
    assert found["calibration"] <= found["train"]
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not found[one] & found[other]
    assert not found["calibration"] & (found["validation"] | found["test"])
    if limit is None:
        everything = numbers(Split(train[0])) | (numbers(Split(test[0])) if with_test else set())
        assert found["train"] | found["validation"] | found["test"] == everything
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        assert np.array_equal(split.y, split.x[:, 0, 0] % 1000 % 3)  # labels moved with the samples


@pytest.mark.parametrize("limit", [None, 50])
def test_the_test_set_of_digits_never_depends_on_the_seed(limit):
    first, *others = (load("digits", seed=seed, limit=limit) for seed in range(3))
    for other in others:
        assert np.array_equal(first.test.x, other.test.x)
        assert np.array_equal(first.test.y, other.test.y)
        assert not np.array_equal(first.train.x, other.train.x)
        assert not np.array_equal(first.validation.x, other.validation.x)
        assert first.sha256 == other.sha256
    again = load("digits", seed=0, limit=limit)
    assert np.array_equal(first.train.x, again.train.x)
    assert np.array_equal(first.validation.y, again.validation.y)


def test_digits():
    data = load("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1293, 144, 360)
    assert data.train.x.dtype == np.float32
    assert (data.train.x.min(), data.train.x.max()) == (0, 1)
    # stratified: a fifth of each class of 174 to 183
    counts = np.bincount(data.test.y, minlength=10)
    assert counts.min() >= 34
    assert counts.max() <= 37


def test_a_sorted_file_gives_mixed_splits():
    data = load((numbered(200), np.repeat([0, 1], 100)), limit=40)
    for name in ("train", "validation", "test"):
        assert set(getattr(data, name).y) == {0, 1}


@pytest.mark.parametrize(
    ("n", "share", "sizes"),
    [
        (100, 0.1, (72, 8, 20)),
        (100, 0, (80, 0, 20)),
        (100, 0.999, (1, 79, 20)),
        (1, 0.1, (0, 0, 1)),
    ],
)
def test_validation_split(n, share, sizes):
    data = load((numbered(n), np.zeros(n, int)), validation_split=share)
    assert tuple(len(s) if s else 0 for s in (data.train, data.validation, data.test)) == sizes


def test_calibration_has_a_bound_and_no_labels():
    data = load((numbered(1000), np.zeros(1000, int)))
    assert len(data.calibration) == CALIBRATION
    assert data.calibration.y is None


def test_notes_say_how_each_split_was_made():
    notes = "\n".join(load("digits", seed=7, limit=100).notes)
    for words in (
        "x divided by 16",
        "test: 360 samples held out, the same whatever the seed",
        "test limited to 100 samples",
        "training part limited to 100 of 1,437",
        "validation: 10 of 100 training samples, taken out by a shuffle with seed 7",
        "calibration: the inputs of 90 training samples, no labels",
    ):
        assert words in notes


@pytest.mark.parametrize("kind", ["tuple", "npz"])
def test_a_test_part_held_out_here_warns_of_models_trained_before(kind, tmp_path):
    spec = (numbered(100), np.arange(100) % 3)
    if kind == "npz":
        np.savez(tmp_path / "own.npz", x=spec[0], y=spec[1])
        spec = tmp_path / "own.npz"
    warning = "a model trained on these arrays before has seen them"
    (note,) = [note for note in load(spec).notes if note.startswith("test: ")]
    assert note.startswith("test: 20 samples held out") and note.endswith(warning)
    own_test = (numbered(100), np.arange(100) % 3), (numbered(30), np.arange(30) % 3)
    for other in (own_test, "digits"):
        assert warning not in str(load(other).notes)


def test_data_of_a_test_part_alone_say_that_they_cannot_train(tmp_path):
    np.savez(tmp_path / "test.npz", x_test=numbered(20), y_test=np.arange(20) % 4)
    record = load(tmp_path / "test.npz").describe()
    assert record["sizes"]["train"] == 0
    assert "train: no samples, these data can be measured on but not trained on" in record["notes"]
    assert "no samples" not in str(load((numbered(20), np.arange(20) % 4)).notes)


def test_describe_is_plain_json():
    record = load("digits").describe()
    assert json.loads(json.dumps(record)) == record
    assert record["sizes"] == {"train": 1293, "validation": 144, "calibration": 500, "test": 360}
    assert (record["shape"], record["dtype"], record["classes"]) == ([8, 8], "float32", 10)
    assert len(record["sha256"]) == 64


def test_another_pixel_is_another_hash():
    x, y = numbered(10), np.arange(10)
    first = load((x, y)).sha256
    x[3, 0, 0] += 1
    assert load((x, y)).sha256 != first


def test_data_is_returned_as_it_is():
    data = load("digits")
    assert load(data, seed=5) is data


# --- named data and files -------------------------------------------------------------------------


def test_named_data_are_found_and_scaled(mnist_like):
    data = load("mnist")
    assert (len(data.train), len(data.validation), len(data.test)) == (54, 6, 20)
    assert data.test.x.dtype == np.float32
    assert np.array_equal(data.test.x, images(20, 1).astype(np.float32) / 255)
    assert data.test.y.tolist() == [n % 10 for n in range(20)]
    assert data.classes == 10
    assert str(mnist_like) not in json.dumps(data.describe())


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("variable", ["KERAS_HOME", "HOME"])
def test_named_data_are_found_in_the_cache_of_keras(name, variable, tmp_path, monkeypatch):
    for unset in ("KERAS_HOME", "SECATEUR_DATA"):
        monkeypatch.delenv(unset, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    root = tmp_path if variable == "KERAS_HOME" else tmp_path / ".keras"
    save_mnist_like(root / "datasets" / f"{name}.npz")
    assert len(load(name).test) == 20


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.tobytes())


@pytest.fixture
def fashion_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("SECATEUR_DATA", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    folder = tmp_path / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    for part, n in (("train", 30), ("t10k", 10)):
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images(n)))
        labels = (np.arange(n) % 10).astype(np.uint8)
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return folder


def test_fashion_mnist_is_read_from_the_four_files_of_keras(fashion_cache):
    data = load("fashion-mnist")
    assert np.array_equal(data.test.x, images(10).astype(np.float32) / 255)
    assert data.test.y.tolist() == list(range(10))


def test_a_damaged_cache_is_refused(fashion_cache):
    (fashion_cache / "t10k-images-idx3-ubyte.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(SecateurError, match=r"t10k-images.*a gzipped IDX file; fix: delete"):
        load("fashion-mnist")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_missing_named_data_name_the_places_and_the_fix(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path / "own"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    with pytest.raises(SecateurError) as missing:
        load(name)
    message = str(missing.value)
    assert "\n" not in message
    assert str(tmp_path / "own" / f"{name}.npz") in message
    assert str(tmp_path / "keras" / "datasets" / f"{name}.npz") in message
    assert f"keras.datasets.{name.replace('-', '_')}.load_data()" in message


@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize("layout", ["keras", "pool", "test only"])
def test_npz_layouts(layout, with_labels, tmp_path):
    names = {"keras": ["train", "test"], "pool": [""], "test only": ["test"]}[layout]
    arrays = {}
    for name in names:
        tail = f"_{name}" if name else ""
        arrays[f"x{tail}"] = numbered(20)
        if with_labels:
            arrays[f"y{tail}"] = np.arange(20) % 4
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    data = load(str(path))
    assert data.name == "mine.npz"
    assert data.classes == (4 if with_labels else None)
    assert len(data.test) == (4 if layout == "pool" else 20)
    assert (data.test.y is not None) == with_labels
    assert (data.train is None) == (layout == "test only")
    assert load(path).sha256 == data.sha256


@pytest.mark.skipif(
    not os.environ.get("SECATEUR_DATA"), reason="SECATEUR_DATA names no folder with mnist.npz"
)
def test_real_mnist():
    data = load("mnist")
    sizes = {"train": 54_000, "validation": 6_000, "calibration": 500, "test": 10_000}
    assert data.describe()["sizes"] == sizes
    assert data.test.y[:5].tolist() == [7, 2, 1, 0, 4]
    pixels = np.concatenate([data.train.x, data.validation.x])
    assert pixels.mean(dtype=np.float64) == pytest.approx(0.1307, abs=1e-4)
    assert pixels.std(dtype=np.float64) == pytest.approx(0.3081, abs=1e-4)


# --- scaling and dtypes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "largest", "note"),
    [
        (None, 200, "x left in 0..255"),
        ("auto", 200 / 255, "x divided by 255"),
        (100, 2, "x divided by 100"),
        ("100", 2, "x divided by 100"),
        (1, 200, None),
    ],
)
def test_scaling_of_8_bit_inputs(scale, largest, note):
    x = np.full((10, 2), 200, np.uint8)
    data = load((x, np.arange(10) % 2), scale=scale)
    assert data.train.x.dtype == np.float32
    assert data.train.x.max() == pytest.approx(largest)
    assert any(n.startswith(note) for n in data.notes) if note else "divide" not in str(data.notes)
    assert (x == 200).all()


def test_a_number_replaces_the_scale_of_named_data(mnist_like):
    assert load("mnist", scale=1).test.x.max() == images(20, 1).max()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.float64, np.float32),
        (np.float16, np.float32),
        (np.int8, np.float32),
        (bool, np.float32),
        (np.int32, np.int32),
    ],
)
def test_input_dtypes(given, kept):
    assert load((np.ones((10, 3), given), np.zeros(10, int))).test.x.dtype == kept


@pytest.mark.parametrize("scale", [0, -1, "big", float("nan"), float("inf"), [255]])
def test_a_scale_that_cannot_divide_is_refused(scale):
    with pytest.raises(SecateurError, match=r"scale=.*; fix: 255 for 8-bit"):
        load((numbered(10), np.zeros(10, int)), scale=scale)


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "shape", "classes"),
    [
        (np.arange(20) % 5, (), 5),
        (np.arange(20).reshape(20, 1) % 5, (), 5),
        (np.eye(5)[np.arange(20) % 5], (5,), 5),
        (np.eye(5, dtype=int)[np.arange(20) % 5], (5,), 5),
        (np.arange(20) % 2 == 0, (), 2),
        (np.float32(np.arange(20) % 2), (), 2),
        (np.linspace(0, 1, 20), (), None),
        (np.linspace(0, 1, 20).reshape(20, 1), (1,), None),
        (np.ones((20, 3)), (3,), None),
        (None, None, None),
    ],
)
def test_kinds_of_labels(y, shape, classes):
    data = load((numbered(20), y))
    assert data.classes == classes
    assert (None if data.test.y is None else data.test.y.shape[1:]) == shape


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["cat"] * 10, r"y of dtype <U3 received.*np\.unique"),
        (np.array([{}] * 10), "y of dtype object"),
        ([[1], [1, 2]] * 5, "y with rows of unequal length"),
        (np.arange(9), r"10 samples with y of shape \(9,\)"),
        (np.array(3), r"10 samples with y of shape \(\)"),
        (np.array([0, np.nan] * 5), "y with 5 NaN or infinite values, the first in sample 1"),
        (np.zeros(10, complex), "y of dtype complex128"),
    ],
)
def test_bad_labels(y, message):
    with pytest.raises(SecateurError, match=message) as refused:
        load((numbered(10), y))
    assert "fix: " in str(refused.value)
    assert "\n" not in str(refused.value)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("fashion_mnist", "did you mean 'fashion-mnist'"),
        ("nowhere.npz", r"data 'nowhere\.npz' received.*check the path"),
        (42, "pass .x, y."),
        ([1, 2], "pass .x, y."),
        (np.empty((0, 3)), r"x of shape \(0, 3\)"),
        (np.array(3.0), r"x of shape \(\)"),
        ((np.full((5, 2), np.inf), np.zeros(5)), "x with 10 NaN or infinite"),
        ((np.array(["a"]), np.zeros(1)), "x of dtype <U1"),
        (((numbered(5), None), (numbered(5, (3, 3)), None)), r"shapes \(2, 2\) and \(3, 3\)"),
    ],
    ids=str,
)
def test_bad_data(spec, message):
    with pytest.raises(SecateurError, match=message) as refused:
        load(spec)
    assert "fix: " in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_split": 1}, r"validation_split=1 .*\[0, 1\)"),
        ({"validation_split": float("nan")}, "validation_split=nan"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(SecateurError, match=message):
        load("digits", **options)


class Dangerous:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


def test_no_pickle_is_read(tmp_path):
    path = tmp_path / "evil.npz"
    np.savez(path, x=np.array([Dangerous()]), y=np.zeros(1))
    with pytest.raises(SecateurError, match=r"unreadable .Object arrays cannot be loaded"):
        load(path)


def test_damaged_files(tmp_path):
    save_mnist_like(tmp_path / "good.npz")
    good = (tmp_path / "good.npz").read_bytes()
    flipped = bytearray(good)
    flipped[5000] ^= 0xFF  # inside the pixels: only the checksum of the member can tell
    np.save(tmp_path / "single.npy", np.zeros(3))
    single = (tmp_path / "single.npy").read_bytes()
    for content in (good[:-100], bytes(flipped), single, b"a,b\n1,2\n", b""):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(SecateurError, match=r"bad.npz, unreadable .*np\.savez") as refused:
            load(tmp_path / "bad.npz")
        assert "\n" not in str(refused.value)


def test_a_file_without_the_known_keys(tmp_path):
    np.savez(tmp_path / "other.npz", features=np.zeros(3), target=np.zeros(3))
    with pytest.raises(SecateurError, match="with features, target received, expected x_train"):
        load(tmp_path / "other.npz")


# --- fitting a model ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((4, 6), (4, 6, 1)),
        ((4, 6, 1), (4, 6)),
        ((4, 6), (24,)),
        ((24,), (4, 6, 1)),
        ((1, 4, 6), (4, 6, 1)),
    ],
)
def test_samples_are_folded_without_moving_a_value(shape, wanted):
    x = np.random.default_rng(0).random((20, *shape), dtype=np.float32)
    data = load((x, np.arange(20) % 2))
    fitted = fit_to(data, wanted, (2,))
    for name in SPLITS:
        before, after = getattr(data, name), getattr(fitted, name)
        assert after.x.shape == (len(before), *wanted)
        assert np.array_equal(after.x.ravel(), before.x.ravel())
    assert fitted.notes[-1] == f"x reshaped from {shape} to {wanted} for the model"
    assert fitted.sha256 == data.sha256


@pytest.mark.parametrize("wanted", [(4, 6), (None, 6), (None, None)])
def test_data_that_fit_are_returned_as_they_are(wanted):
    data = load((np.zeros((20, 4, 6)), None))
    assert fit_to(data, wanted, (2,)) is data


@pytest.mark.parametrize("wanted", [(6, 4), (4, 6, 3), (23,), (None, 4, 6), (2, 12)])
def test_samples_that_do_not_fit(wanted):
    data = load((np.zeros((20, 4, 6)), None))
    with pytest.raises(SecateurError, match=r"shape \(4, 6\), received, expected the model's \("):
        fit_to(data, wanted, (2,))


@pytest.mark.parametrize(
    ("y", "outputs"),
    [
        (np.arange(20) % 10, (10,)),
        (np.arange(20) % 2, (1,)),
        (np.arange(20) % 2, (2,)),
        (np.linspace(0, 1, 20), (1,)),
        (np.ones((20, 3)), (3,)),
        (np.eye(4, dtype=int)[np.arange(20) % 4], (4,)),
        (np.arange(20) % 10, (None,)),
        (np.zeros((20, 4, 6), int), (4, 6, 2)),
        (None, (10,)),
    ],
    ids=lambda value: str(getattr(value, "shape", value)),
)
def test_targets_that_fit(y, outputs):
    data = load((numbered(20), y))
    assert fit_to(data, (2, 2), outputs) is data


@pytest.mark.parametrize(
    ("y", "outputs", "message"),
    [
        (np.arange(20) % 11, (10,), r"label 10 in arrays .train. received.*0\.\.9.* 10 outputs"),
        (np.arange(20) % 5 - 1, (10,), "label -1 in"),
        (np.arange(20) % 3, (1,), r"label 2 .*0\.\.1: the model has 1 output;.*float targets"),
        (np.linspace(0, 1, 20), (10,), r"targets of shape \(\) \(float64\).*\(10,\)"),
        (np.eye(4)[np.arange(20) % 4], (10,), r"targets of shape \(4,\)"),
    ],
)
def test_targets_that_do_not_fit(y, outputs, message):
    with pytest.raises(SecateurError, match=message):
        fit_to(load((numbered(20), y)), (2, 2), outputs)


# --- by hand --------------------------------------------------------------------------------------


def test_data_made_by_hand_can_be_described():
    test = Split(np.zeros((3, 4), np.float32))
    record = Data("mine", None, None, None, test).describe()
    assert record["sizes"] == {"train": 0, "validation": 0, "calibration": 0, "test": 3}
    assert len(record["sha256"]) == 64


def test_data_without_samples_are_refused():
    with pytest.raises(SecateurError, match="samples of shapes none in mine"):
        Data("mine", None, None, None, None)


def test_importing_and_reading_arrays_load_no_framework():
    code = (
        "import sys, numpy as np; from secateur import datasets; "
        "datasets.load((np.zeros((9, 2)), np.arange(9))); "
        "print([m for m in ('keras', 'tensorflow', 'sklearn', 'jax', 'torch') if m in sys.modules])"
    )
    source = Path(__file__).resolve().parents[1] / "src"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
