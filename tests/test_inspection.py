"""Inspecting models and files: the counts are right and the explanations are supported by them."""

import dataclasses
import io

import keras
import numpy as np
import pytest
from keras import layers
from rich.console import Console

from secateur import conversion
from secateur.compression import copy_model
from secateur.errors import SecateurError
from secateur.inspection import differences, inspect, weight_records
from secateur.methods.prune import Prune
from secateur.reporting import console
from secateur.runtimes.keras import save_model
from secateur.weights import weight_table


def net():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((40,)),
            layers.Dense(60, name="hidden"),
            layers.BatchNormalization(name="bn"),
            layers.Dense(5, name="head"),
        ]
    )
    model.compile("adam", "mse")
    return model


def test_counts_of_a_model():
    found = inspect(net())
    assert (found.parameters, found.trainable, found.non_trainable) == (3005, 2885, 120)
    # biases, beta and moving mean start at zero
    assert found.nonzero == 2400 + 300 + 60 + 60
    assert found.bytes is None


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_is_inspected_with_its_sizes_and_optimizer_state(tmp_path, suffix):
    model = net()
    model.fit(np.ones((4, 40)), np.ones((4, 5)), verbose=0)
    with_optimizer = tmp_path / f"trained{suffix}"
    model.save(with_optimizer)
    without = tmp_path / f"bare{suffix}"
    save_model(model, without)
    # Adam keeps two numbers for each of the 2,885 trainable parameters.
    assert inspect(with_optimizer).optimizer_elements == 2 * 2885
    assert inspect(without).optimizer_elements == 0
    assert inspect(with_optimizer).bytes == with_optimizer.stat().st_size
    sentences = differences(inspect(with_optimizer), inspect(without))
    assert any("5,770 elements of optimizer state" in s for s in sentences)


def test_a_live_model_has_the_state_of_its_optimizer_and_not_the_masks():
    model = net()
    assert inspect(model).optimizer_elements == 0  # not built yet: it holds none
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(inspect(model).optimizer_elements)
    )
    prune = Prune(sparsity=0.5)
    callbacks = [prune.callback(), watch]
    model.fit(np.ones((4, 40)), np.ones((4, 5)), verbose=0, callbacks=callbacks)
    assert {*seen, inspect(model).optimizer_elements} == {2 * 2885}
    assert "The first model also keeps 5,770 elements" in " ".join(
        differences(inspect(model), inspect(copy_model(model)))
    )
    # what Keras's summary adds to the parameters, with its two counters
    lines = []
    model.summary(print_fn=lines.append)
    shown = next(line for line in "".join(lines).splitlines() if "Total params" in line)
    assert "8,777" in shown and model.count_params() == 3005 and 3005 + 5770 + 2 == 8777


def test_pruning_is_explained_by_numbers(tmp_path):
    model = copy_model(net())
    save_model(model, tmp_path / "before.h5")
    Prune(sparsity=0.8).apply(model)
    save_model(model, tmp_path / "after.h5")
    before, after = inspect(tmp_path / "before.h5"), inspect(tmp_path / "after.h5")
    assert before.parameters == after.parameters
    assert before.nonzero - after.nonzero == 1920 + 240
    text = " ".join(differences(before, after))
    assert "The parameter count is the same (3,005)" in text
    assert "2,160 more of them are zero" in text
    assert "a zero takes as many bytes" in text
    assert after.gzip_bytes < 0.6 * before.gzip_bytes


def test_fewer_zeros_in_the_second_are_not_called_equal(tmp_path):
    model = copy_model(net())
    save_model(model, tmp_path / "dense.h5")
    Prune(sparsity=0.8).apply(model)
    save_model(model, tmp_path / "pruned.h5")
    pruned, dense = inspect(tmp_path / "pruned.h5"), inspect(tmp_path / "dense.h5")
    text = " ".join(differences(pruned, dense))
    assert "Both hold the same" not in text
    assert "2,160 more of them are zero in the first" in text
    assert f"{pruned.gzip_bytes:,} bytes in the first, {dense.gzip_bytes:,} in the second" in text


def test_equal_is_said_of_equal_ones_alone():
    same = "Both hold the same number of parameters, zeros and optimizer state."
    found = differences(inspect(net()), inspect(net()))
    assert found[0] == same and "non-trainable" in found[1]
    values = inspect(net())
    for change in ({"nonzero": 2819}, {"nonzero": 2821}, {"parameters": 3006, "nonzero": 2820}):
        other = dataclasses.replace(values, **change)
        assert same not in differences(values, other)
        assert same not in differences(other, values)
    assert same not in differences(values, dataclasses.replace(values, optimizer_elements=7))


def test_a_tflite_does_not_say_what_is_trainable(tmp_path):
    model = net()
    path = tmp_path / "model.tflite"
    path.write_bytes(conversion.to_litert(model)["float32"])
    found, live = inspect(path), inspect(model)
    assert (found.trainable, found.non_trainable) == (None, None)
    assert all(record["trainable"] is None for record in found.weights)
    text = " ".join(differences(found, found))
    assert "non-trainable" not in text and "Both hold the same" in text
    text = " ".join(differences(live, found))
    assert "are gone" not in text and "changed shape" not in text  # tensors have other names
    assert "of the second are non-trainable" not in text
    records = [live.to_record(), found.to_record()]
    assert "trainable" not in printed(console.weights(records[1]))
    cells = [line.split() for line in printed(console.side_by_side(records)).splitlines()]
    assert ["trainable", "2,885", "-"] in cells
    assert ["non", "trainable", "120", "-"] in cells
    assert ["bytes", "-"] in [row[:2] for row in cells]


def printed(table):
    terminal = Console(width=200, file=io.StringIO())
    terminal.print(table)
    return terminal.file.getvalue().replace("\N{BOX DRAWINGS LIGHT VERTICAL}", " ")


def test_other_networks_are_not_called_pruned():
    small = keras.Sequential(
        [keras.Input((40,)), layers.Dense(30, name="hidden"), layers.Dense(5, name="head")]
    )
    text = " ".join(differences(inspect(net()), inspect(small)))
    assert "instead of" in text
    assert "3 weights changed shape" in text
    assert "pruning" not in text


def test_records_hold_first_values_and_a_histogram_without_the_zeros():
    model = net()
    Prune(sparsity=0.5).apply(model)
    record = {r["path"]: r for r in weight_records(weight_table(model))}["hidden/kernel"]
    assert record["zeros"] == 1200
    assert sum(record["histogram"]["counts"]) == 1200
    assert len(record["histogram"]["edges"]) == len(record["histogram"]["counts"]) + 1
    np.testing.assert_allclose(
        record["first"], weight_table(model)["hidden/kernel"].read().ravel()[:16]
    )


def test_nan_weights_are_counted_not_hidden():
    model = net()
    kernel = weight_table(model)["head/kernel"]
    values = np.array(kernel.read())
    values[0, :3] = np.nan
    kernel.variable.assign(values)
    record = {r["path"]: r for r in weight_records(weight_table(model))}["head/kernel"]
    assert record["not_finite"] == 3
    assert np.isfinite(record["max"])


def test_a_file_that_is_no_model_is_one_line(tmp_path):
    (tmp_path / "broken.keras").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(SecateurError, match=r"broken.keras could not be loaded"):
        inspect(tmp_path / "broken.keras")
