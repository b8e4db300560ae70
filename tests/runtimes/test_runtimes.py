"""Runtimes by name: their options, what is not installed, and what is measured in which."""

import importlib.util
import json
import tracemalloc

import keras
import numpy as np
import pytest

from secateur import conversion, runtimes, zoo
from secateur.arrays import affine
from secateur.errors import SecateurError
from secateur.measurement import measure
from secateur.runtimes import litert, runtime


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((64, 28, 28), dtype="float32")


@pytest.fixture(scope="module")
def files(x, tmp_path_factory):
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("files")
    made = conversion.to_litert(zoo.build("lab-cnn"), ("float32", "int8"), calibration=x)
    for format, blob in made.items():
        (folder / f"{format}.tflite").write_bytes(blob)
    return folder


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("lite-rt", r"unknown runtime 'lite-rt'; did you mean 'litert'\?"),
        ("", "unknown runtime ''; known: "),
        ("litert:referense", r"'litert:referense'; did you mean 'reference'\?"),
        ("vela:ethos-u55-129", r"did you mean 'ethos-u55-"),
        ("vela:", "unknown option in 'vela:'"),
        ("tflm:fast", "expected no option after tflm"),
    ],
)
def test_a_name_that_does_not_exist_is_answered_with_the_nearest(spec, match):
    with pytest.raises(SecateurError, match=match) as refused:
        runtime(spec)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("tflm", "tflite_micro", "micro"),
        ("vela", "ethosu", "micro"),
        ("onnx", "onnxruntime", "onnx"),
    ],
)
def test_a_runtime_that_is_not_installed_names_its_extra(monkeypatch, name, package, extra):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == package else found(n, *a)
    )
    with pytest.raises(SecateurError, match=rf"{package} is not installed.*secateur\[{extra}\]"):
        runtime(name).prepare()


def test_every_runtime_has_its_module_and_its_own_files(files):
    for name, kind in runtimes.RUNTIMES.items():
        assert importlib.util.find_spec(f"secateur.runtimes.{name}") is not None
        assert kind.suffixes
    with pytest.raises(SecateurError, match=r"int8.tflite received .* keras, expected a .keras"):
        measure(files / "int8.tflite", runtime="keras")
    with pytest.raises(SecateurError, match=r"a Sequential received for the runtime litert"):
        measure(zoo.build("lab-cnn"), runtime="litert")


def test_kernels_are_chosen_by_name(files, x):
    fast = runtime("litert").load(files / "int8.tflite")
    slow = runtime("litert:reference").load(files / "int8.tflite")
    assert fast.name.endswith("XNNPACK") and slow.name.endswith("reference kernels")
    difference = np.abs(fast.predict(x) - slow.predict(x))
    (step,) = slow.output_steps.values()
    assert difference.max() <= 1.001 * step
    # Another sum, in another order: the same kernels would give the same floats.
    fast, slow = (
        runtime(name).load(files / "float32.tflite") for name in ("litert", "litert:reference")
    )
    assert 0 < np.abs(fast.predict(x) - slow.predict(x)).max() < 1e-4
    assert (
        measure(files / "int8.tflite", (x, None), runtime="litert:reference").runtime == slow.name
    )


def test_measuring_10_000_images_keeps_memory_flat(files):
    data = np.random.default_rng(0).random((10_000, 28, 28), dtype="float32")  # 31 MB
    labels = np.zeros(10_000, int)
    measure(files / "int8.tflite", (data[:300], labels[:300]), latency=False)
    tracemalloc.start()
    measured = measure(files / "int8.tflite", (data, labels), latency=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert measured.n == 10_000
    assert peak < 8e6  # the outputs as float64 several times over, for the metrics: 0.8 MB each
    json.dumps(measured.to_record(), allow_nan=False)


def test_codes_are_clipped_and_come_back():
    codes = affine.coded(np.float32([-9, 0, 0.25, 9]), np.int8, 0.25, -3)
    assert codes.tolist() == [-39, -3, -2, 33]
    assert affine.coded(np.float32([1e6, -1e6]), np.int8, 0.25, -3).tolist() == [127, -128]
    assert affine.decoded(codes, 0.25, -3).tolist() == [-9, 0, 0.25, 9]
    assert affine.values_of(codes, (np.dtype("int8"), 0.25, -3), "x").tolist() == [-9, 0, 0.25, 9]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "bool"])
def test_whole_numbers_are_values_like_any(dtype):
    """They were written as codes, and wrapped."""
    values = np.array([0, 1, 100, 127]).astype(dtype)
    expected = affine.coded(values.astype("float32"), np.int8, 0.5, -128).tolist()
    assert affine.coded(values, np.int8, 0.5, -128).tolist() == expected


@pytest.mark.parametrize("values", [np.float32([0.5]), np.int64([300]), np.int64([-1])])
def test_an_input_without_a_scale_rounds_and_wraps_nothing(values):
    with pytest.raises(SecateurError, match=r"an input of uint8 without a scale, expected whole"):
        affine.coded(values, np.uint8, 0.0, 0)
    with pytest.raises(SecateurError, match=r"codes received for input x, which has none"):
        affine.values_of(values, (np.dtype("float32"), 0.0, 0), "x")


@pytest.mark.parametrize("runtime", ["litert", "litert:reference", "tflm"])
def test_pixels_of_uint8_give_what_they_give_as_floats(files, runtime):
    pixels = np.random.default_rng(2).integers(0, 2, (8, 28, 28), dtype=np.uint8)
    session = runtimes.runtime(runtime).load(files / "int8.tflite")
    floats = session.predict(pixels.astype("float32"))
    np.testing.assert_array_equal(session.predict(pixels), floats)
    coding = session.input_coding(session.input_names[0])
    measured = [
        measure(files / "int8.tflite", pair, latency=False, runtime=runtime, codes=codes).accuracy
        for pair, codes in (
            ((pixels, floats.argmax(-1)), False),
            ((affine.coded(pixels, *coding), floats.argmax(-1)), True),
        )
    ]
    assert measured == [1.0, 1.0]


def test_a_runtime_without_extra_costs_says_nothing(files):
    assert litert.load(files / "int8.tflite").costs() == {}
    measured = measure(files / "int8.tflite")
    assert (measured.arena_bytes, measured.npu, measured.omitted) == (None, None, None)
