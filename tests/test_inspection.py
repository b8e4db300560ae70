"""Inspecting models and files: the counts are right and the explanations are supported by them."""

import keras
import numpy as np
import pytest
from keras import layers

from secateur.compression import copy_model
from secateur.errors import SecateurError
from secateur.inspection import differences, inspect, weight_records
from secateur.methods.prune import Prune
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
