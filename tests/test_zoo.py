import keras
import numpy as np
import pytest

from secateur import zoo
from secateur.errors import SecateurError


@pytest.mark.parametrize(
    ("name", "input_shape", "classes", "parameters"),
    [
        ("lab-cnn", None, None, 20_410),
        ("lab-cnn", (32, 32, 3), 5, 3 * 3 * 3 * 12 + 12 + 15 * 15 * 12 * 5 + 5),
        ("lenet-300-100", None, None, 266_610),
        ("lenet-300-100", (8, 8), None, 50_610),
        ("lenet-300-100", [20], 3, 20 * 300 + 300 + 300 * 100 + 100 + 303),
        ("challenge-mlp", None, None, 2_386_000),
    ],
)
def test_exact_sizes_and_shapes(name, input_shape, classes, parameters):
    model = zoo.build(name, input_shape, classes)
    assert model.count_params() == parameters
    assert model.name == name
    outputs = model(np.zeros((2, *(input_shape or (28, 28))), np.float32))
    assert tuple(outputs.shape) == (2, classes or 10)


def test_only_the_challenge_ends_in_softmax_and_has_no_biases():
    for name in zoo.ZOO:
        output = zoo.build(name).layers[-1]
        softmax = name == "challenge-mlp"
        assert output.activation is (
            keras.activations.softmax if softmax else keras.activations.linear
        )
        assert output.use_bias is not softmax


@pytest.mark.parametrize("name", zoo.ZOO)
def test_weights_have_the_same_paths_however_many_models_were_built(name):
    first, second = ([weight.path for weight in zoo.build(name, (8, 8)).weights] for _ in range(2))
    assert first == second
    assert any("dense/kernel" in path for path in first)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_callers_seed_decides_the_weights(name):
    def weights(seed):
        keras.utils.set_random_seed(seed)
        return [keras.ops.convert_to_numpy(w) for w in zoo.build(name, (8, 8)).weights]

    first, again, other = weights(1), weights(1), weights(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(SecateurError, match="did you mean 'lenet-300-100'"):
        zoo.build("lenet-300")


@pytest.mark.parametrize("shape", [(64,), (2, 2), (4, 4, 1, 1), (28, 3, 1)])
def test_the_lab_network_takes_images_only(shape):
    with pytest.raises(SecateurError, match=r"expected .height, width.*use lenet-300-100"):
        zoo.build("lab-cnn", shape)
