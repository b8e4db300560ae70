"""Gradients and input norms on whichever backend runs, against values computed by hand in NumPy."""

import keras
import numpy as np
import pytest
from keras import layers

from secateur.capture import batches_of, evidence, gradients, input_norms
from secateur.datasets import Split
from secateur.errors import SecateurError
from secateur.weights import weight_table


def linear(frozen=False):
    """One Dense layer without bias: for mean squared error, gradient and norm are short formulas."""
    net = keras.Sequential([keras.Input((3,)), layers.Dense(2, use_bias=False, name="d")])
    net.layers[0].trainable = not frozen
    return net


def samples(n=10, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 3), np.float32), rng.standard_normal((n, 2), np.float32)


def rows(net, *paths):
    table = weight_table(net)
    return [table[path] for path in paths]


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_means_over_batches_of_the_batch_gradients(frozen):
    net = linear(frozen)
    x, y = samples()
    kernel = rows(net, "d/kernel")[0].read()
    by_hand = []
    for begin in (0, 4, 8):
        bx, by = x[begin : begin + 4], y[begin : begin + 4]
        by_hand.append(2 * bx.T @ (bx @ kernel - by) / by.size)
    batches = batches_of(x, y, size=4)
    mean, squares = gradients(net, "mse", rows(net, "d/kernel"), batches)["d/kernel"]
    np.testing.assert_allclose(mean, np.mean(by_hand, 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(squares, np.mean(np.square(by_hand), 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(rows(net, "d/kernel")[0].read(), kernel)
    assert net.layers[0].trainable is not frozen


def test_gradients_of_embeddings_and_of_layers_that_do_not_matter_are_dense_arrays():
    inputs = keras.Input((4,), dtype="int32")
    pooled = layers.GlobalAveragePooling1D()(layers.Embedding(6, 3, name="e")(inputs))
    net = keras.Model(inputs, layers.Dense(2, name="d")(pooled))
    tokens, y = np.array([[0, 1, 2, 2]]), np.ones((1, 2), "float32")
    found = gradients(net, "mse", rows(net, "e/embeddings"), [(tokens, y)])
    mean = found["e/embeddings"][0]
    assert mean.shape == (6, 3)
    assert (mean[3:] == 0).all()  # tokens that did not occur
    np.testing.assert_allclose(mean[2], 2 * mean[1], rtol=1e-4)


def test_dropout_is_off_and_batchnorm_stays_as_it_is():
    net = keras.Sequential(
        [
            keras.Input((3,)),
            layers.BatchNormalization(name="bn"),
            layers.Dropout(0.5),
            layers.Dense(2, name="d"),
        ]
    )
    moving = rows(net, "bn/moving_mean")[0].read()
    x, y = samples()
    first, second = (gradients(net, "mse", rows(net, "d/kernel"), [(x, y)]) for _ in range(2))
    np.testing.assert_array_equal(first["d/kernel"][0], second["d/kernel"][0])
    np.testing.assert_array_equal(rows(net, "bn/moving_mean")[0].read(), moving)


def norm(x, axis):
    return np.sqrt(np.square(x.astype(np.float64)).sum(axis=axis))


def test_input_norms_run_over_samples_and_positions():
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(3, 3, name="conv")(inputs)
    x = layers.DepthwiseConv2D(2, depth_multiplier=2, name="depthwise")(x)
    net = keras.Model(inputs, layers.Dense(2, name="dense")(x))
    seen = np.random.default_rng(0).standard_normal((7, 6, 6, 4), np.float32)
    between = keras.Model(inputs, net.get_layer("conv").output)(seen)
    paths = ["conv/kernel", "depthwise/kernel", "dense/kernel"]
    found = input_norms(net, rows(net, *paths), [(seen[:4], None), (seen[4:], None)])
    assert [found[path].shape for path in paths] == [(1, 1, 4, 1), (1, 1, 3, 1), (6, 1)]
    np.testing.assert_allclose(found["conv/kernel"].ravel(), norm(seen, (0, 1, 2)), rtol=1e-4)
    middle = norm(keras.ops.convert_to_numpy(between), (0, 1, 2))
    np.testing.assert_allclose(found["depthwise/kernel"].ravel(), middle, rtol=1e-4)
    assert "call" not in vars(net.get_layer("conv"))


def test_input_norms_of_attention_follow_the_axes_that_are_summed_over():
    query = keras.Input((5, 8))
    attention = layers.MultiHeadAttention(2, 3, name="mha")
    net = keras.Model(query, attention(query=query, value=query, key=query))
    seen = np.random.default_rng(0).standard_normal((4, 5, 8), np.float32)
    paths = ["mha/query/kernel", "mha/attention_output/kernel"]
    found = input_norms(net, rows(net, *paths), [(seen, None)])
    np.testing.assert_allclose(found[paths[0]].ravel(), norm(seen, (0, 1)), rtol=1e-4)
    assert found[paths[0]].shape == (8, 1, 1)
    assert found[paths[1]].shape == (2, 3, 1)  # heads and keys


def test_input_norms_of_an_embedding_are_counts():
    inputs = keras.Input((4,), dtype="int32")
    net = keras.Model(inputs, layers.Embedding(6, 3, name="e")(inputs))
    found = input_norms(net, rows(net, "e/embeddings"), [(np.array([[0, 1, 2, 2]]), None)])
    np.testing.assert_allclose(found["e/embeddings"].ravel() ** 2, [1, 1, 2, 0, 0, 0])


def test_what_cannot_be_seen_is_refused_by_name():
    inputs = keras.Input((4, 3))
    net = keras.Model(inputs, layers.LSTM(2, name="lstm")(inputs))
    x = np.zeros((2, 4, 3), "float32")
    with pytest.raises(SecateurError, match="lstm/lstm_cell/kernel .* made inside LSTMCell"):
        input_norms(net, rows(net, "lstm/lstm_cell/kernel"), [(x, None)])


def test_evidence_holds_what_was_asked_for_and_missing_data_are_said():
    net = linear()
    weights = {w.path: w for w in rows(net, "d/kernel")}
    assert evidence(net, weights, {"weight", "rng"}, None) == {}
    found = evidence(net, weights, {"weight", "gradient"}, samples(), "mse")
    assert set(found["d/kernel"]) == {"gradient"}
    with pytest.raises(SecateurError, match=r"needs gradient, .* data=\(x, y\)"):
        evidence(net, weights, {"gradient"}, None, "mse")
    with pytest.raises(SecateurError, match="the model has none; compile it"):
        evidence(net, weights, {"gradient"}, samples())
    with pytest.raises(SecateurError, match="labels"):
        evidence(net, weights, {"gradient"}, (samples()[0], None), "mse")
    with pytest.raises(SecateurError, match=r"data ndarray received, expected \(x, y\)"):
        evidence(net, weights, {"gradient"}, samples()[0], "mse")
    split = evidence(net, weights, {"weight", "gradient"}, Split(*samples()), "mse")
    np.testing.assert_array_equal(split["d/kernel"]["gradient"], found["d/kernel"]["gradient"])


def test_snip_prunes_what_the_formula_says():
    from secateur.methods.prune import Prune

    net = linear()
    x, y = samples()
    kernel = rows(net, "d/kernel")[0].read()
    scores = np.abs(kernel * (2 * x.T @ (x @ kernel - y) / y.size))
    keep = Prune(sparsity=0.5, criterion="snip").apply(net, data=(x, y), loss="mse")["d/kernel"]
    assert set(map(tuple, np.argwhere(keep))) == set(
        map(tuple, np.argwhere(scores > np.sort(scores.ravel())[2]))
    )
