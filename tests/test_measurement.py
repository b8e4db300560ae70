"""Numbers of a file: checked by hand, against Keras's own metrics, and without a framework."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from secateur import conversion, measurement, zoo
from secateur.datasets import Split
from secateur.errors import SecateurError
from secateur.measurement import measure
from secateur.runtimes import Constant
from secateur.runtimes.keras import save_model


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    return Split(rng.random((300, 28, 28), dtype="float32"), rng.integers(0, 10, 300))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    made = zoo.build("lab-cnn")
    kernel = keras.ops.convert_to_numpy(made.layers[-1].kernel).copy()
    kernel[:1000] = 0  # 10,000 of 20,280
    made.layers[-1].kernel.assign(kernel)
    return made


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for format, blob in conversion.to_litert(model, ("float32", "dynamic")).items():
        (folder / f"{format}.tflite").write_bytes(blob)
    save_model(model, folder / "model.keras")
    save_model(model, folder / "model.h5")
    return folder


# --- files ----------------------------------------------------------------------------------------


def test_a_tflite_is_measured_whole(folder, data):
    path = folder / "float32.tflite"
    m = measure(path, data)
    blob = path.read_bytes()
    assert m.path == str(path) and m.format == "tflite" and m.runtime.startswith("litert ")
    assert (m.bytes, m.gzip_bytes) == (len(blob), len(gzip.compress(blob, 9, mtime=0)))
    assert m.macs == 93_288 and m.n == 300 and m.threads == 1
    # The zero bias of the last layer is not stored; that of the first is.
    assert (m.parameters, m.zeros) == (20_400, 10_012)
    assert m.nonzero == 20_400 - 10_012 and m.sparsity == 10_012 / 20_400
    assert 0 <= m.accuracy <= m.top5 <= 1 and m.loss > 0 and m.mse is None
    assert 0 < m.load_ms < 1000
    json.dumps(m.to_record(), allow_nan=False)


def test_keras_and_litert_agree(folder, data, model):
    exact = measure(folder / "float32.tflite", data, latency=False)
    for subject in (folder / "model.keras", folder / "model.h5", model):
        other = measure(subject, data, latency=False)
        assert other.macs == exact.macs == 93_288
        assert other.accuracy == exact.accuracy
        assert other.loss == pytest.approx(exact.loss, abs=1e-5)
        assert (other.parameters, other.zeros) == (20_410, 10_022)
        assert other.threads is None


def test_a_code_equal_to_its_zero_point_is_a_zero(folder):
    m = measure(folder / "dynamic.tflite")
    assert 10_012 <= m.zeros < 10_400  # and small weights that were rounded to it
    session = type("Session", (), {})()
    codes = Constant("w", np.int8([3, 4, 3]), np.ones(1), np.array([3]), 0, "FULLY_CONNECTED", 1)
    session.constants = lambda: [codes]
    assert measurement.count(session) == {
        "parameters": 3,
        "zeros": 2,
        "nonzero": 1,
        "sparsity": 2 / 3,
    }


def test_measuring_a_tflite_imports_no_framework(folder):
    code = f"""
import sys
import numpy as np
from secateur.datasets import Split
from secateur.measurement import measure
data = Split(np.zeros((5, 28, 28), "float32"), np.zeros(5, int))
print(measure({str(folder / "dynamic.tflite")!r}, data).accuracy is not None)
print([m for m in ("tensorflow", "keras", "jax", "torch") if m in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n[]\n"
    assert done.stderr == ""


def test_what_was_not_asked_for_is_none(folder, data, model):
    bare = measure(folder / "float32.tflite")
    assert (bare.n, bare.accuracy, bare.latency, bare.metrics) == (None,) * 4
    unlabelled = measure(folder / "float32.tflite", Split(data.x, None))
    assert unlabelled.n == 300 and unlabelled.accuracy is None and unlabelled.latency
    live = measure(model, data, latency=False)
    assert (live.path, live.bytes, live.load_ms, live.format) == (None, None, None, "live")


def test_latency_says_how_it_was_taken(folder, data):
    latency = measure(folder / "dynamic.tflite", data, threads=2).latency
    assert latency["p10_us"] <= latency["median_us"] <= latency["p90_us"]
    assert 1 < latency["median_us"] < 1e5 and 0 < latency["cpu_median_us"]
    assert (latency["batch"], latency["threads"]) == (1, 2) and 5 <= latency["runs"] <= 1000


def test_slow_models_are_not_timed_for_long():
    class Slow:
        threads = 1
        calls = 0

        def invoke_once(self, x):
            self.calls += 1
            measurement.time.sleep(0.15)

    slow = Slow()
    assert measurement.time_one(slow, np.zeros(1))["runs"] == 5
    assert slow.calls == 10


def test_the_same_labels_in_three_shapes_give_the_same_numbers(folder, data):
    path = folder / "float32.tflite"
    numbers = []
    for y in (data.y, data.y[:, None], np.eye(10)[data.y]):
        m = measure(path, Split(data.x, y), latency=False)
        numbers.append((m.accuracy, m.loss, m.top5))
    assert numbers[0] == numbers[1] == numbers[2]


def test_keras_metrics_on_request(folder, data):
    metric = keras.metrics.SparseTopKCategoricalAccuracy(k=5, name="top")
    for _ in range(2):  # asked again, it starts from nothing
        m = measure(folder / "float32.tflite", data, latency=False, metrics=[metric])
        assert m.metrics == {"top": pytest.approx(m.top5, abs=1e-6)}


def test_a_pair_of_arrays_is_taken_as_run_takes_it(folder, data):
    path = folder / "float32.tflite"
    expected = measure(path, data, latency=False)
    for pair in ((data.x, data.y), (data.x, data.y.tolist())):
        found = measure(path, pair, latency=False)
        assert dataclasses.replace(found, load_ms=expected.load_ms) == expected
    assert measure(path, (data.x, None), latency=False).n == 300
    for wrong in ((data.x,), [data.x, data.y], "digits", data.x):
        with pytest.raises(SecateurError, match=r"expected .*\(x, y\)") as refused:
            measure(path, wrong, latency=False)
        assert "\n" not in str(refused.value)


def test_threads_that_the_backend_chooses_are_not_guessed(model, data):
    measured = measure(model, data)
    assert measured.threads is None
    assert measured.latency["threads"] is None
    json.dumps(measured.to_record(), allow_nan=False)


def test_errors_name_the_file_or_the_shapes(folder, tmp_path, data):
    with pytest.raises(SecateurError, match=r"expected a .tflite, .onnx, .keras or .h5"):
        measure(tmp_path / "model.pb")
    with pytest.raises(SecateurError, match="could not be read"):
        measure(tmp_path / "none.tflite")
    with pytest.raises(SecateurError, match=r"\(8, 8\) received"):
        measure(folder / "float32.tflite", Split(np.zeros((3, 8, 8)), np.zeros(3, int)))
    with pytest.raises(SecateurError, match=r"labels from 0 to 10 received, expected 0 to 9"):
        measure(folder / "float32.tflite", Split(data.x[:11], np.arange(11)))


def test_a_measurement_cannot_be_changed(folder):
    with pytest.raises(dataclasses.FrozenInstanceError):
        measure(folder / "float32.tflite").accuracy = 1.0
