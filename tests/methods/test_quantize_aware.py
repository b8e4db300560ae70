"""Quantization-aware training: the file that comes out answers as the model was trained."""

import warnings

import keras
import numpy as np
import pytest
from tests import digits_cnn
from tests import quantized_models as nets

from secateur import datasets
from secateur.compression import compress
from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.methods.prune import Prune
from secateur.methods.quantize import Quantize
from secateur.pipeline import run
from secateur.recipe import Export, Recipe
from secateur.runtimes import litert
from secateur.substitute import as_in_file
from secateur.tflite import TfliteFile
from secateur.training import Train
from secateur.weights import Select, weight_table
from secateur.widths import Specification


def in_full(test):
    """Trained for on TensorFlow alone; the plain network is on every backend."""
    elsewhere = pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="in full on TensorFlow"
    )
    return pytest.mark.slow(elsewhere(test))


def aware(model, data, step=None, epochs=1):
    """Train through the grids; what export takes."""
    callback = (step or Quantize(aware=True)).callback(data=data)
    model.fit(*data, epochs=epochs, batch_size=32, verbose=0, callbacks=[callback])
    return callback.specification


def answers(model, specification, x, bits=8):
    with as_in_file(model, specification.widths, specification.ranges, bits) as quantized:
        return quantized.predict(x, verbose=0)


def steps_apart(path, expected, x, kernels):
    """How many steps of its output a file is away from what was expected, at most and how often."""
    session = litert.load(path, kernels=kernels)
    (step,) = session.output_steps.values()
    apart = np.abs(session.predict(x) - expected) / step
    return apart.max(), np.mean(apart > 0.5)


def written(model, specification, data, tmp_path, **settings):
    (artifact,) = export(
        model,
        [specification.format],
        tmp_path,
        stage="aware",
        specification=specification,
        calibration=data[0][:64],
        data=data[0][:64],
        **settings,
    )
    return artifact


def compared(make, tmp_path, step=None, most=2.0, often=0.3, **settings):
    data = nets.pictures()
    model = nets.trained(make, data)
    specification = aware(model, data, step)
    expected = answers(model, specification, data[0])
    artifact = written(model, specification, data, tmp_path, **settings)
    for kernels in ("xnnpack", "reference"):
        apart, share = steps_apart(artifact.path, expected, data[0], kernels)
        assert apart <= most + 0.01, kernels
        assert share <= often, kernels
    return artifact, model, specification


def test_the_file_of_a_plain_network_is_at_most_one_step_away(tmp_path):
    artifact, *_ = compared(nets.plain, tmp_path, most=1.0, often=0.05)
    assert artifact.format == "int8" and artifact.parity["agreement"] == 1.0
    file = TfliteFile.parse(artifact.path.read_bytes(), "it")
    assert [o.name for o in file.operators] == ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]
    assert not file.float_operators()


@in_full
@pytest.mark.parametrize("name", [name for name in nets.MODELS if name != "plain"])
def test_the_files_of_all_kinds_of_layers_are_at_most_two_steps_away(name, tmp_path):
    artifact, *_ = compared(nets.MODELS[name], tmp_path, allow_float=name in nets.MIXED)
    assert artifact.format == ("mixed" if name in nets.MIXED else "int8")


@in_full
@pytest.mark.parametrize(
    ("name", "path", "floats", "dense"),
    [("layered", "norm", {"RSQRT", "MEAN"}, 3), ("recurrent", "gru", {"LOGISTIC", "TANH"}, 1)],
)
def test_what_was_trained_in_float_is_float_in_the_file_and_named(
    name, path, floats, dense, tmp_path
):
    artifact, *_ = compared(nets.MODELS[name], tmp_path, most=1, often=0.1, allow_float=True)
    file = TfliteFile.parse(artifact.path.read_bytes(), "it")
    assert floats <= set(file.float_operators())
    integers = [o for o in file.operators if not any(t.floating for t in o.outputs)]
    assert [o.name for o in integers].count("FULLY_CONNECTED") == dense
    assert any(
        note.startswith(f"computed in float as in training: {path} (") for note in artifact.notes
    )
    with pytest.raises(SecateurError, match="in float received, expected integers throughout"):
        compared(nets.MODELS[name], tmp_path)


@in_full
def test_four_bits_of_weights_are_trained_for(tmp_path):
    step = Quantize(bits=4, aware=True)
    artifact, _, specification = compared(nets.plain, tmp_path, step)
    constants = [c for c in litert.load(artifact.path).constants() if c.bits == 4]
    assert len(constants) == 2
    assert {width.bits for width in specification.widths.values()} == {4}


@in_full
def test_codes_in_the_file_are_those_of_training(tmp_path):
    from secateur.arrays.affine import symmetric_scales

    artifact, model, _ = compared(nets.plain, tmp_path)
    for path in ("conv/kernel", "head/kernel"):
        value = weight_table(model)[path].read()
        scaled = value / symmetric_scales(value, 8, (value.ndim - 1,))
        codes = np.floor(scaled + 0.5).astype(int)
        stored = next(
            c for c in litert.load(artifact.path).constants() if c.values.size == value.size
        )
        np.testing.assert_array_equal(np.moveaxis(codes, -1, 0).ravel(), stored.values.ravel())


def test_the_step_is_described_and_refused_where_it_cannot_be():
    recipe = Recipe(steps=[Quantize(aware=True, freeze=0.25)], train=Train(epochs=2))
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert recipe.train_of(recipe.steps[0]).epochs == 2
    after = Recipe(steps=[Quantize()], train=Train(epochs=2))
    assert after.train_of(after.steps[0]).epochs == 0
    with pytest.raises(SecateurError, match="aware = true received without training"):
        compress(nets.plain(), Recipe(steps=[Quantize(aware=True)], train=Train(epochs=0)))
    with pytest.raises(SecateurError, match="4 bits in blocks of 32 received with aware"):
        Quantize(format="int4", block=32, aware=True)
    with pytest.raises(SecateurError, match="freeze 2 received"):
        Quantize(aware=True, freeze=2)
    with pytest.raises(SecateurError, match="prune.* would break the promise 'bits'"):
        Recipe(steps=[Quantize(aware=True), Prune(sparsity=0.5)])


@in_full
def test_pruned_weights_stay_zero_through_the_training():
    data = nets.pictures()
    model = nets.trained(nets.normalized, data, epochs=1)
    steps = [Prune(sparsity=0.5), Quantize(aware=True)]
    recipe = Recipe(steps=steps, train=Train(epochs=1, batch_size=32), control=False)
    small = compress(model, recipe, data)
    assert {p.kind for p in small.promises} == {"zeros", "bits"}
    kept = {p.path: p.value for p in small.promises if p.kind == "zeros"}
    for path, zeros in kept.items():
        assert (weight_table(small.model)[path].read() == 0).mean() == pytest.approx(0.5, abs=0.05)
        assert zeros.any()
    assert small.specification.ranges and small.stages[0].ranges == {}


def test_what_nothing_reaches_is_said():
    data = nets.pictures()
    model = nets.trained(nets.plain, data, epochs=0)
    kernel, bias = model.get_layer("conv").get_weights()
    model.get_layer("conv").set_weights([0 * kernel, bias - 1])
    callback = Quantize(aware=True).callback(data=data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(*data, epochs=1, verbose=0, callbacks=[callback])
    assert callback.notes[0].startswith("activations of conv were constant throughout the training")


@in_full
def test_a_run_hands_out_the_float_model_and_the_file_of_the_training(tmp_path):
    data = datasets.load("digits")
    model = digits_cnn.trained(data)
    recipe = Recipe(
        steps=[
            Prune(sparsity=0.8),
            Quantize(aware=True),
        ],
        train=Train(epochs=4, learning_rate=0.002),
        export=Export(formats=("keras",)),
        control=False,
    )
    made = run(model, recipe, data, tmp_path / "out")
    rows = {row["row"]: row for row in made.rows}
    assert list(rows) == ["baseline-keras", "quantized-keras", "quantized-int8"]
    assert rows["quantized-int8"]["accuracy"] >= rows["quantized-keras"]["accuracy"] - 0.02
    stage = made.record["stages"][-1]
    beside = Specification.load(tmp_path / "out" / "quantized-keras.keras")
    assert {k: list(r) for k, r in beside.ranges.items()} == stage["ranges"]
    assert {width.bits for width in beside.widths.values()} == {8}
    assert stage["ranges"]["input:0"][0] == 0
    # Plain Keras opens it; its zeros are those that were pruned, in floats and in codes.
    plain = keras.models.load_model(tmp_path / "out" / "quantized-keras.keras")
    kernel = plain.get_layer("dense").get_weights()[0]
    assert (kernel == 0).sum() == int(0.8 * kernel.size + 0.5)
    constants = litert.load(tmp_path / "out" / "quantized-int8.tflite").constants()
    codes = next(c for c in constants if c.values.size == kernel.size).values
    assert (codes.T[kernel == 0] == 0).all()


@in_full
def test_selected_layers_have_their_own_bits(tmp_path):
    data = nets.pictures()
    model = nets.trained(nets.plain, data)
    steps = [
        Quantize(),
        Quantize(bits=4, select=Select(include=("head",)), aware=True),
    ]
    small = compress(model, Recipe(steps=steps, train=Train(epochs=1), control=False), data)
    widths = {path: width.bits for path, width in small.specification.widths.items()}
    assert widths == {"conv/kernel": 8, "head/kernel": 4}
    expected = answers(small.model, small.specification, data[0])
    artifact = written(small.model, small.specification, data, tmp_path, promises=small.promises)
    assert steps_apart(artifact.path, expected, data[0], "xnnpack")[0] <= 1.01
