"""LiteRT for Microcontrollers: the answers of the reference kernels, the arena, what it lacks."""

import importlib
import os
import random
import resource
import sys
import tracemalloc
from dataclasses import replace

import keras
import numpy as np
import pytest

from secateur import conversion, zoo
from secateur.apart import run_apart
from secateur.errors import SecateurError
from secateur.measurement import measure
from secateur.runtimes import litert, runtime, tflm
from secateur.tflite import TfliteFile

# Where it has no wheels its tests are left out; a machine that publishes must have it.
present = importlib.import_module if os.environ.get("CI") else pytest.importorskip
present("tflite_micro")

layers = keras.layers


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((100, 28, 28), dtype="float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return zoo.build("lab-cnn")


@pytest.fixture(scope="module")
def files(model, x):
    formats = ("float32", "dynamic", "int8", "int16x8")
    return conversion.to_litert(model, formats, calibration=x)


@pytest.fixture(scope="module")
def session(files):
    return tflm.load(files["int8"])


def test_integers_are_those_of_the_reference_kernels(files, session, x):
    expected = litert.load(files["int8"], 1, "reference").predict(x)
    (step,) = session.output_steps.values()
    assert step > 0
    for batch in (1, 7, 256):
        outputs = session.predict(x, batch=batch)
        assert outputs.dtype == np.float32 and outputs.shape == (100, 10)
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=1.001 * step)
    assert len(np.unique(outputs.argmax(-1))) > 1  # not the same answer to everything


@pytest.mark.parametrize("format", ["float32", "int16x8"])
def test_other_types_agree_too(files, x, format):
    session = tflm.load(files[format])
    expected = litert.load(files[format], 1, "reference").predict(x[:20])
    (step,) = session.output_steps.values()
    np.testing.assert_allclose(session.predict(x[:20]), expected, rtol=0, atol=step + 1e-4)


def test_the_arena_is_what_the_chip_needs(files, session):
    # by hand: the head holds the largest pair of tensors at once, 26 x 26 x 12 and 13 x 13 x 12
    assert 26 * 26 * 12 + 13 * 13 * 12 <= session.arena["head"] < 11_000
    assert session.arena["total"] == session.arena["head"] + session.arena["tail"]
    assert 11_500 < session.arena["total"] < 12_800
    assert session.costs()["arena_bytes"] == session.arena["total"]
    # Activations of twice the width need twice the memory, whatever the weights.
    assert 1.9 < tflm.load(files["int16x8"]).arena["head"] / session.arena["head"] < 2.1


def test_what_is_inside_the_file(session):
    assert session.name.startswith("tflm 0.dev") and session.threads == 1
    assert (session.input_shape, session.output_shape) == ((28, 28), (10,))
    assert session.macs() == 93_288
    assert dict(session.operators())["CONV_2D"] == 1
    assert sum(c.coded for c in session.constants()) >= 2


def test_measuring_gives_accuracy_and_arena_and_no_latency(files, tmp_path, x):
    path = tmp_path / "model.tflite"
    path.write_bytes(files["int8"])
    labels = litert.load(files["int8"], 1, "reference").predict(x).argmax(-1)
    found = measure(path, (x, labels), runtime="tflm")
    assert found.accuracy >= 0.97 and found.n == 100
    assert found.arena_bytes == tflm.load(path).arena["total"]
    assert found.latency is None and found.load_ms is None
    assert "says nothing about a microcontroller" in found.omitted["latency"]
    assert found.sparsity is not None and found.bytes == len(files["int8"])


def test_operators_without_a_kernel_are_all_named():
    inputs = keras.Input((4, 6))
    gelu = keras.activations.gelu(layers.Dense(8)(inputs))
    top, _ = keras.ops.top_k(gelu, 2)
    blob = conversion.to_litert(keras.Model(inputs, top))["float32"]
    with pytest.raises(SecateurError, match=r"no kernel for \(GELU, TOPK_V2\)") as refused:
        tflm.load(blob)
    assert "\n" not in str(refused.value) and "fix: " in str(refused.value)


def test_types_without_a_kernel_name_the_operator(files):
    with pytest.raises(
        SecateurError, match=r"cannot prepare .*\((CONV_2D|FULLY_CONN.*): .*ot supported"
    ):
        tflm.load(files["dynamic"])


def test_several_inputs_and_outputs_travel_by_name(monkeypatch):
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    sums = layers.Dense(4, name="z")(layers.Subtract()([right, left]))
    net = keras.Model([right, left], [sums, layers.Dense(1, name="a")(left)])
    blob = conversion.to_litert(net)["float32"]
    rng = np.random.default_rng(0)
    x = {name: rng.random((5, 3), dtype="float32") for name in ("left", "right")}
    expected = litert.load(blob).predict(x)
    # A signature may name them in another order than the graph, by which the interpreter counts.
    file = TfliteFile.parse(blob, "")
    turned = replace(
        file, inputs=dict([*file.inputs.items()][::-1]), outputs=dict([*file.outputs.items()][::-1])
    )
    monkeypatch.setattr(TfliteFile, "parse", lambda *_: turned)
    outputs = tflm.load(blob).predict(x)
    assert set(outputs) == set(expected) and len(outputs) == 2
    for name, array in expected.items():
        np.testing.assert_allclose(outputs[name], array, atol=1e-5)


def test_a_foreign_file_with_a_batch_of_its_own_gives_every_output(model, x):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("makes a foreign file with TensorFlow's own converter, in this process")
    blob = conversion._traced(model, 4, "float32")
    expected = litert.load(blob).predict(x[:10])
    session = tflm.load(blob)
    np.testing.assert_allclose(session.predict(x[:10], batch=7), expected, atol=1e-4)
    assert session.macs() == 93_288


def test_a_small_net_on_large_images_has_the_memory_it_needs():
    inputs = keras.Input((128, 128, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(inputs))
    blob = conversion.to_litert(keras.Model(inputs, x))["float32"]
    assert tflm.load(blob).arena["total"] > 10 * len(blob)  # more than the interpreter would take


def test_10_000_samples_keep_memory_flat():
    net = keras.Sequential([keras.Input((64,)), layers.Dense(2)])
    session = tflm.load(conversion.to_litert(net)["float32"])
    x = np.random.default_rng(0).random((10_000, 64), dtype="float32")  # 2.6 MB
    session.predict(x[:1000])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    outputs = session.predict(x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outputs.shape == (10_000, 2) and peak < 5e5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda blob: b"PK\3\4" + blob, "is not a .tflite file"),
        (lambda blob: blob[: len(blob) // 2], "is damaged"),
    ],
)
def test_a_damaged_file_is_one_line(files, tmp_path, damage, match):
    path = tmp_path / "model.tflite"
    path.write_bytes(damage(files["int8"]))
    with pytest.raises(SecateurError, match=match) as refused:
        runtime("tflm").load(path)
    assert "\n" not in str(refused.value) and "model.tflite" in str(refused.value)


def test_a_file_that_crashes_the_interpreter_ends_only_the_trial(files, monkeypatch):
    def crash(arguments, limits, name, **options):
        code = "import faulthandler; faulthandler._sigsegv()"
        return run_apart([sys.executable, "-c", code], {}, limits, name)

    monkeypatch.setattr(tflm, "run_python", crash)
    with pytest.raises(SecateurError, match=r"crashed with SIGSEGV\), expected an unchanged"):
        tflm.load(files["int8"])


@pytest.mark.slow
def test_files_with_changed_bytes_never_end_the_process(files):
    rng, refused = random.Random(0), 0
    for _ in range(40):
        blob = bytearray(files["int8"])
        for _ in range(3):
            blob[rng.randrange(len(blob))] = rng.randrange(256)
        try:
            tflm.load(bytes(blob))
        except SecateurError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused
