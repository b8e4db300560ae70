"""Vela: what the compiler estimates for an NPU, what it leaves to the CPU, what it cannot read."""

import importlib
import json
import os

import keras
import numpy as np
import pytest

from secateur import conversion, zoo
from secateur.errors import SecateurError
from secateur.measurement import measure
from secateur.reporting import console
from secateur.runtimes import runtime, vela

# Where it has no wheels its tests are left out; a machine that publishes must have it.
present = importlib.import_module if os.environ.get("CI") else pytest.importorskip
present("ethosu.vela")


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((64, 28, 28), dtype="float32")


def lab(share):
    """The lab CNN with this share of each kernel's smallest weights at zero.

    Normally distributed: a trained network's weights are, and evenly spread codes do not compress.
    """
    net, rng = zoo.build("lab-cnn"), np.random.default_rng(0)
    for layer in net.layers:
        if hasattr(layer, "kernel"):
            kernel = rng.normal(0, 0.05, layer.kernel.shape).astype("float32")
            kernel[np.abs(kernel) < np.quantile(np.abs(kernel), share)] = 0
            layer.kernel.assign(kernel)
    return net


@pytest.fixture(scope="module")
def files(x):
    made = conversion.to_litert(lab(0.0), ("float32", "int8", "int4"), calibration=x)
    return made | {"sparse": conversion.to_litert(lab(0.8), ("int8",), calibration=x)["int8"]}


@pytest.fixture(scope="module")
def dense(files):
    return vela.estimate(files["int8"])


def test_zeros_make_weights_smaller_and_the_network_faster(files, dense):
    sparse = vela.estimate(files["sparse"])
    # Measured with Vela 5.2 when this was written: 71.9 us and 22.0 KiB; 39.2 us and 6.0 KiB.
    assert 68e-6 < dense.seconds < 76e-6 and 21e3 < dense.encoded_weight_bytes < 24e3
    assert 36e-6 < sparse.seconds < 43e-6 and 5e3 < sparse.encoded_weight_bytes < 7.5e3
    assert sparse.flash_bytes < 0.4 * dense.flash_bytes
    assert sparse.original_weight_bytes == dense.original_weight_bytes


def test_the_estimate_says_that_it_is_one_and_of_what(dense):
    assert dense.label.startswith("estimated by Vela ") and dense.label.endswith(", not silicon")
    assert (dense.accelerator, dense.clock_hz) == ("ethos-u55-128", 500e6)
    assert dense.memory_mode == "Shared_Sram" and "Ethos_U55" in dense.system_config
    assert dense.seconds == pytest.approx(dense.cycles / dense.clock_hz)
    # by hand: the largest pair of tensors at once, 26 x 26 x 12 and 13 x 13 x 12 bytes
    assert 26 * 26 * 12 + 13 * 13 * 12 <= dense.sram_bytes < 16_000
    assert dense.flash_bytes >= dense.encoded_weight_bytes
    assert (dense.operators, dense.cpu_operators) == (5, [])
    json.dumps(dense.to_record(), allow_nan=False)


def test_accelerator_and_memories_are_chosen(files, dense):
    small = vela.estimate(files["int8"], "ethos-u55-32")
    assert small.accelerator == "ethos-u55-32" and small.seconds > dense.seconds
    slow = vela.estimate(
        files["int8"], system_config="Ethos_U55_Deep_Embedded", memory_mode="Sram_Only"
    )
    assert slow.clock_hz == 200e6 and slow.seconds > 1.1 * dense.seconds
    assert (slow.system_config, slow.memory_mode) == ("Ethos_U55_Deep_Embedded", "Sram_Only")
    with pytest.raises(SecateurError, match="expected both or neither"):
        vela.estimate(files["int8"], memory_mode="Sram_Only")
    with pytest.raises(SecateurError, match=r"'ethos-u55-129'; did you mean 'ethos-u55-"):
        vela.estimate(files["int8"], "ethos-u55-129")
    with pytest.raises(SecateurError, match="could not be compiled.*None_Such") as refused:
        vela.estimate(files["int8"], system_config="None_Such", memory_mode="Sram_Only")
    assert "\n" not in str(refused.value)


def test_a_float_file_stays_on_the_cpu_and_the_table_says_so(files, tmp_path, x):
    path = tmp_path / "float.tflite"
    path.write_bytes(files["float32"])
    found = measure(path, (x, np.zeros(64, int)), runtime="vela")
    npu = found.npu
    assert npu["seconds"] is None and len(npu["cpu_operators"]) == npu["operators"] == 5
    by_name = {row["operator"]: row for row in npu["cpu_operators"]}
    assert set(by_name) == {"Reshape", "Conv2D", "MaxPool", "FullyConnected"}
    assert "unsupported DataType Float32" in by_name["Conv2D"]["reason"]
    assert all(row["tensor"] for row in npu["cpu_operators"])
    shown = " ".join(text(console.measurements([found.to_record()])).split())
    assert "all CPU" in shown
    assert "left to the CPU: Reshape, Conv2D, MaxPool, FullyConnected" in shown


def test_an_operator_that_the_npu_lacks_is_named(x):
    inputs = keras.Input((16,))
    net = keras.Model(inputs, keras.ops.top_k(keras.layers.Dense(8)(inputs), 2)[0])
    blob = conversion.to_litert(net, ("int8",), calibration=x[:, 0, :16])["int8"]
    found = vela.estimate(blob)
    assert "TopKV2" in {row["operator"] for row in found.cpu_operators}
    assert len(found.cpu_operators) < found.operators and found.seconds > 0


def test_measuring_predicts_nothing_and_says_why(files, tmp_path, x):
    path = tmp_path / "a b;c.tflite"
    path.write_bytes(files["int8"])
    found = measure(path, (x, np.zeros(64, int)), runtime="vela:ethos-u65-256")
    assert (found.accuracy, found.n, found.latency, found.load_ms) == (None,) * 4
    assert set(found.omitted) == {"accuracy", "latency"}
    assert found.npu["accelerator"] == "ethos-u65-256" and found.parameters > 20_000
    assert found.runtime.endswith("ethos-u65-256 (estimate)") and found.macs == 93_288
    with pytest.raises(SecateurError, match="compiles and does not run"):
        runtime("vela").load(path).predict(x)


def test_files_that_crash_the_compiler_are_one_line(files, tmp_path):
    with pytest.raises(SecateurError, match=r"Vela crashed with .*reads no 4-bit codes") as refused:
        vela.estimate(files["int4"])
    assert "\n" not in str(refused.value)
    path = tmp_path / "cut.tflite"
    path.write_bytes(files["int8"][:5000])
    with pytest.raises(SecateurError, match=r"cut.tflite is damaged"):
        vela.estimate(path)
    with pytest.raises(SecateurError, match=r"none.tflite could not be read"):
        vela.estimate(tmp_path / "none.tflite")


def test_runtimes_stand_side_by_side(files, dense, tmp_path, x):
    path = tmp_path / "int8.tflite"
    path.write_bytes(files["int8"])
    one = measure(path, (x, np.zeros(64, int))).to_record()
    assert "est." not in text(console.measurements([one]))
    assert "arena" not in text(console.measurements([one]))
    two = measure(path, runtime="vela").to_record()
    three = {**dict.fromkeys(one), "path": str(path), "runtime": "tflm 0", "arena_bytes": 12_345}
    four = {"path": str(tmp_path / "other.tflite"), "runtime": "tflm", "refused": "no [kernel]"}
    shown = text(console.measurements([one, two, three, four]), 120)
    for expected in (
        *("arena", "SRAM", "flash", "(est.)", "12,345", f"{dense.encoded_weight_bytes:,}"),
        *("estimated by Vela", "not silicon", "tflm refused: no [kernel]", "vela: no accuracy"),
    ):
        assert expected in shown, expected
    assert shown.count("int8.tflite") == 1  # its size is said once
    assert f"{dense.sram_bytes:,}" in text(console.measurements([one, two, three]), 80)
    assert f"{dense.flash_bytes:,}" in text(console.measurements([one, two, three]), 80)


def text(table, width=100):
    from rich.console import Console

    out = Console(width=width)
    with out.capture() as captured:
        out.print(table)
    return captured.get()
