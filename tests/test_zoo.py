import keras
import numpy as np
import pytest

from secateur import zoo
from secateur.errors import SecateurError

SMALL = {"lenet-5": (16, 16), "vgg16-head": (32, 32, 3), "mobilenet-head": (32, 32, 3)}


@pytest.mark.parametrize(
    ("name", "input_shape", "classes", "parameters"),
    [
        ("lab-cnn", None, None, 20_410),
        ("lab-cnn", (32, 32, 3), 5, 3 * 3 * 3 * 12 + 12 + 15 * 15 * 12 * 5 + 5),
        ("lenet-300-100", None, None, 266_610),
        ("lenet-300-100", (8, 8), None, 50_610),
        ("lenet-300-100", [20], 3, 20 * 300 + 300 + 300 * 100 + 100 + 303),
        ("challenge-mlp", None, None, 2_386_000),
        ("lenet-5", None, None, 431_080),
        ("lenet-5", (28, 28, 1), None, 431_080),
        ("lenet-5", (32, 32, 3), 5, 1_520 + 25_050 + (5 * 5 * 50 + 1) * 500 + 501 * 5),
        ("vgg16-head", (32, 32, 3), 12, 14_714_688 + 513 * 512 + 513 * 12),
        ("mobilenet-head", (32, 32, 3), 12, 218_544 + 257 * 128 + 129 * 12),
        ("mobilenet-head", (48, 40, 1), None, 218_544 - 2 * 9 * 8 + 257 * 128 + 129 * 10),
    ],
)
def test_exact_sizes_and_shapes(name, input_shape, classes, parameters):
    model = zoo.build(name, input_shape, classes)
    assert model.count_params() == parameters
    assert model.name == name
    outputs = model(np.zeros((2, *(input_shape or (28, 28))), np.float32))
    assert tuple(outputs.shape) == (2, classes or 10)


def test_vgg16_at_the_size_of_the_notebooks():
    model = zoo.build("vgg16-head", classes=12)
    assert model.input_shape == (None, 224, 224, 3)
    assert model.count_params() == 27_566_412
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == 12_851_724


def test_mobilenet_by_default():
    model = zoo.build("mobilenet-head")
    assert model.input_shape == (None, 96, 96, 3)
    assert model.count_params() == 252_730
    wide = zoo.mobilenet_head((32, 32, 3), alpha=0.5)
    assert wide.count_params() == 829_536 + 513 * 128 + 129 * 10


@pytest.mark.parametrize("name", ["vgg16-head", "mobilenet-head"])
def test_the_base_is_one_layer_and_frozen_unless_it_is_asked_for(name):
    model = zoo.build(name, (32, 32, 3))
    base, *head = model.layers
    assert base.name == name.removesuffix("-head")
    assert base.layers[0].name == "image"
    assert base.trainable_variables == []
    assert len(model.trainable_variables) == 4
    assert all(layer.trainable for layer in head)
    free = zoo.ZOO[name]((32, 32, 3), frozen=False)
    assert len(free.trainable_variables) == 4 + len(free.layers[0].trainable_variables) > 20


def test_a_frozen_base_stays_what_it_is_in_training():
    """Its batch normalisation too: neither weights nor running means move."""
    model = zoo.build("mobilenet-head", (32, 32, 3), 2)
    before = [keras.ops.convert_to_numpy(v) for v in model.layers[0].variables]
    x = np.random.default_rng(0).random((8, 32, 32, 3), np.float32)
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(8) % 2, verbose=0)
    after = [keras.ops.convert_to_numpy(v) for v in model.layers[0].variables]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_weights_come_from_a_file(tmp_path):
    donor = zoo.mobilenet_head((32, 32, 3)).layers[0]
    donor.save_weights(tmp_path / "base.weights.h5")
    model = zoo.mobilenet_head((32, 32, 3), weights=str(tmp_path / "base.weights.h5"))
    for a, b in zip(donor.weights, model.layers[0].weights, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


@pytest.mark.parametrize("name", ["vgg16-head", "mobilenet-head"])
def test_weights_that_do_not_fit_are_refused_in_one_line(name, tmp_path):
    (tmp_path / "bad.weights.h5").write_bytes(b"no weights")
    for weights in (str(tmp_path / "bad.weights.h5"), "imagenets"):
        with pytest.raises(SecateurError, match=r"weights '.*expected None, 'imagenet'") as refused:
            zoo.ZOO[name]((32, 32, 3), weights=weights)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_outputs_and_biases(name):
    output = zoo.build(name, SMALL.get(name, (8, 8))).layers[-1]
    softmax = name in ("challenge-mlp", "vgg16-head", "mobilenet-head")
    assert output.activation is (keras.activations.softmax if softmax else keras.activations.linear)
    assert output.use_bias is (name != "challenge-mlp")


@pytest.mark.parametrize("name", zoo.ZOO)
def test_weights_have_the_same_paths_however_many_models_were_built(name):
    shape = SMALL.get(name, (8, 8))
    first, second = ([weight.path for weight in zoo.build(name, shape).weights] for _ in range(2))
    assert first == second
    assert any("dense/kernel" in path for path in first)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_layers_have_the_same_names_however_many_models_were_built(name):
    def names(layers):
        return [(layer.name, names(getattr(layer, "layers", []))) for layer in layers]

    shape = SMALL.get(name, (8, 8))
    first, second = (names(zoo.build(name, shape).layers) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_callers_seed_decides_the_weights(name):
    def weights(seed):
        keras.utils.set_random_seed(seed)
        model = zoo.build(name, SMALL.get(name, (8, 8)))
        return [keras.ops.convert_to_numpy(w) for w in model.weights]

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


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("lenet-5", (15, 28), "of 16x16 or more"),
        ("vgg16-head", (31, 32, 3), "of 32x32 or more"),
        ("mobilenet-head", (64,), "of 32x32 or more"),
        ("vgg16-head", (32, 32), "1 or 3 channels; fix: reshape"),
        ("mobilenet-head", (32, 32, 4), "1 or 3 channels; fix: reshape"),
    ],
)
def test_what_the_larger_networks_cannot_take_is_refused(name, shape, message):
    with pytest.raises(SecateurError, match=message):
        zoo.build(name, shape)


@pytest.mark.parametrize("alpha", [0, -1, 0.01, float("nan"), float("inf")])
def test_a_width_of_nothing_is_refused(alpha):
    with pytest.raises(SecateurError, match="alpha=.*try 0.25"):
        zoo.mobilenet_head((32, 32, 3), alpha=alpha)
