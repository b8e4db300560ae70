"""A quantize step leaves the floats alone; its file holds the bits that the step promised."""

import keras
import numpy as np
import pytest
from keras import layers

from secateur.compression import compress
from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.methods.prune import Prune
from secateur.methods.quantize import Quantize
from secateur.pipeline import run
from secateur.promises import Promise, require
from secateur.recipe import Export, Recipe
from secateur.runtimes import litert
from secateur.tflite import TfliteFile
from secateur.training import Train
from secateur.verification import verify
from secateur.weights import Select, weight_table
from secateur.widths import Width

FLOAT = Width(bits=None)
DENSE, CONV = Select(include=("hidden", "head")), Select(include=("conv", "depth"))


def net():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.DepthwiseConv2D(3, name="depth"),
            layers.Flatten(),
            layers.Dense(32, activation="relu", name="hidden"),
            layers.Dense(4, name="head"),
        ]
    )
    model.get_layer("conv").trainable = False  # a frozen kernel is quantized like any other
    return model


def images(n=48):
    """Pictures with a bright quarter, which is their class."""
    rng = np.random.default_rng(0)
    x, y = rng.random((n, 8, 8, 1), dtype=np.float32) / 2, np.arange(n) % 4
    for picture, quarter in zip(x, y, strict=True):
        row, column = 4 * (quarter // 2), 4 * (quarter % 2)
        picture[row : row + 4, column : column + 4] += 0.5
    return x, y


def bits(artifact):
    return {
        path.removesuffix("/kernel"): record["bits"]
        for path, record in artifact.tensors.items()
        if path.endswith("kernel")
    }


def said(artifact):
    """The notes, less what the clean process took (on other backends than TensorFlow)."""
    return [note for note in artifact.notes if not note.startswith("converted by TensorFlow")]


def written(recipe, tmp_path, **settings):
    """The file of a recipe's specification, and what was compressed."""
    small = compress(net(), recipe)
    assert small.specification is not None
    (artifact,) = export(
        small.model,
        [small.specification.format],
        tmp_path,
        stage="quantized",
        promises=small.promises,
        specification=small.specification,
        calibration=images()[0],
        data=images()[0],
        **settings,
    )
    return artifact, small


# --- the plan -------------------------------------------------------------------------------------


def test_the_plan_accounts_for_every_weight():
    model = net()
    plan = Quantize(format="int4", block=32, select=Select(exclude=("head",))).plan(
        weight_table(model)
    )
    assert [change.path for change in plan] == [w.path for w in weight_table(model)]
    how = {change.path: change.how or change.reason for change in plan}
    assert how["conv/kernel"] == "4 bits, activations float (blocks do not fit)"
    assert how["depth/kernel"] == "8 bits, activations float (no operator with 4 bits)"
    assert how["hidden/kernel"] == "4 bits in blocks of 32, activations float"
    assert how["head/kernel"] == "excluded"
    assert how["head/bias"] == "role bias is not selected"


def test_what_no_file_stores_in_few_bits_is_skipped_with_its_reason():
    model = keras.Sequential([keras.Input((7,), dtype="int32"), layers.Embedding(9, 4, name="e")])
    (change,) = Quantize(format="dynamic").plan(weight_table(model))
    assert change.reason == "lookups stay float in dynamic files"
    assert Quantize(format="int8").plan(weight_table(model)).changed == ("e/embeddings",)
    model = keras.Sequential([keras.Input((6, 6, 6, 2)), layers.Conv3D(4, 3, name="c")])
    change = next(iter(Quantize(format="int8").plan(weight_table(model))))
    assert change.reason == "no integer operator for Conv3D"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantize(format="int9"), "unknown format 'int9'; did you mean 'int8'"),
        (lambda: Quantize(format="onnx-int8"), "unknown format 'onnx-int8'"),
        (lambda: Quantize(bits=3), "bits 3 received, expected 4, 8, 16 or float"),
        (lambda: Quantize(bits=16), "16 bits received for the format int8"),
        (lambda: Quantize(bits=4, block=32), "block 32 received for the format int8"),
        (lambda: Quantize(format="int4", block=33), "block 33 with 4 bits received"),
        (lambda: Quantize(format="dynamic", block=32), "block 32 with 8 bits received"),
        (lambda: Quantize(otherwise=5), "bits 5 received"),
        (
            lambda: Quantize(select=Select(include=("hiden",))).plan(weight_table(net())),
            "'hiden' matches no layer or weight; did you mean 'hidden'",
        ),
        (
            lambda: Recipe(steps=[Quantize(), Quantize(format="dynamic")]).plan(net()),
            "formats int8 and dynamic received, expected one kind of activations",
        ),
        (
            lambda: Recipe(steps=[Quantize(select=DENSE)]).plan(net()),
            "conv/kernel, depth/kernel left in float by the quantize step .* otherwise = 8",
        ),
        (
            lambda: Recipe(steps=[Quantize(), Prune(sparsity=0.5)]),
            r"step 2 \(prune\) would break the promise 'bits' of step 1 \(quantize\); "
            r"fix: put it before step 1 \(quantize\)$",
        ),
        (
            lambda: Recipe.from_toml('[[steps]]\nmethod = "quantize"\n[steps.train]\nepochs = 2\n'),
            r"step 1 \(quantize\) received with a `train` block",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(make, message):
    with pytest.raises(SecateurError, match=message) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_later_steps_decide_anew_for_what_they_select():
    table = weight_table(net())
    everything = Quantize(format="dynamic").specify(table)
    assert set(everything.widths.values()) == {Width(bits=8)}
    then = Quantize(format="int4", block=32, select=DENSE).specify(table, everything)
    assert then.format == "int4"
    assert then.widths["conv/kernel"] == then.widths["depth/kernel"] == Width(bits=8)
    assert then.widths["hidden/kernel"] == Width(bits=4, block=32)
    only = Quantize(format="dynamic", select=DENSE).specify(table)
    assert only.widths["conv/kernel"] == FLOAT
    assert Quantize(format="float16").specify(table).format == "float16"
    half = Quantize(format="float16", select=CONV).specify(table, everything)
    assert half.format == "dynamic" and half.widths["conv/kernel"] == Width(bits=16)


# --- the files ------------------------------------------------------------------------------------


def test_the_floats_are_not_changed_and_nothing_is_trained():
    model = net()
    before = model.get_weights()
    small = compress(model, Recipe(steps=[Quantize()], train=Train(epochs=3)), images())
    for old, new in zip(before, small.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert small.stages[0].history is None
    assert next(p.describe() for p in small.promises) == "at most 8 bits a weight of conv/kernel"


def test_dense_in_blocks_of_4_bits_and_convolutions_in_8(tmp_path):
    steps = [
        Quantize(format="int4", block=32, select=DENSE),
        Quantize(format="dynamic", select=CONV),
    ]
    artifact, small = written(Recipe(steps=steps), tmp_path)
    assert artifact.path.name == "quantized-int4.tflite"
    assert bits(artifact) == {"conv": 8, "depth": 8, "hidden": 4, "head": 4}
    constants = litert.load(artifact.path).constants()
    kernel = next(c for c in constants if c.values.shape == (32, 128))
    assert kernel.bits == 4 and np.abs(kernel.values).max() <= 7
    assert len(np.unique(kernel.step()[0])) == 128 // 32  # a scale for each block
    found = verify(artifact.path, "int4", small.model, small.promises).findings
    assert all(finding.ok for finding in found)
    assert [f.detail for f in found][-1] == "4 bits a weight found"
    assert artifact.parity["agreement"] >= 0.8


def test_selected_kernels_get_4_bits_among_integers(tmp_path):
    recipe = Recipe(steps=[Quantize(bits=4, otherwise=8, select=Select(include=("hidden",)))])
    artifact, _ = written(recipe, tmp_path)
    assert artifact.format == "int8"
    assert bits(artifact) == {"conv": 8, "depth": 8, "hidden": 4, "head": 8}
    assert TfliteFile.parse(artifact.path.read_bytes(), "it").float_operators() == []
    assert artifact.parity["agreement"] >= 0.8


def test_what_is_not_selected_stays_float_and_the_file_is_called_mixed(tmp_path):
    recipe = Recipe(steps=[Quantize(select=DENSE)], export=Export(allow_float=True))
    artifact, _ = written(recipe, tmp_path, allow_float=True)
    assert artifact.path.name == "quantized-mixed.tflite"
    assert bits(artifact) == {"conv": 32, "depth": 32, "hidden": 8, "head": 8}
    assert artifact.tensors["conv/kernel"]["skipped"] == "left in float as selected"
    assert said(artifact) == ["left in float as selected: conv/kernel, depth/kernel"]
    floats = TfliteFile.parse(artifact.path.read_bytes(), "it").float_operators()
    assert floats == ["CONV_2D", "DEPTHWISE_CONV_2D"]


def test_halves_and_codes_share_a_file(tmp_path):
    recipe = Recipe(steps=[Quantize(format="dynamic"), Quantize(format="float16", select=CONV)])
    artifact, _ = written(recipe, tmp_path)
    assert bits(artifact) == {"conv": 16, "depth": 16, "hidden": 8, "head": 8}


def test_a_file_with_more_bits_than_promised_is_refused(tmp_path):
    model = net()
    table = weight_table(model)
    (artifact,) = export(model, ["int8"], tmp_path, stage="s", calibration=images()[0])
    for path, allowed, ok in (("hidden/kernel", 8, True), ("hidden/kernel", 4, False)):
        promise = Promise(path, "bits", allowed, table[path].shape)
        if ok:
            verify(artifact.path, "int8", model, [promise])
            continue
        with pytest.raises(SecateurError, match="at most 4 bits a weight of hidden/kernel: 8 bits"):
            verify(artifact.path, "int8", model, [promise])
    promise = Promise("hidden/kernel", "bits", 8, (128, 32))
    (artifact,) = export(model, ["float32"], tmp_path, stage="s", promises=[promise])
    (finding,) = verify(artifact.path, "float32", model, [promise]).findings
    assert finding.detail == "skipped: weights are floats here by nature"
    assert artifact.tensors["hidden/kernel"]["skipped"].startswith("float32 stores floats")
    assert said(artifact) == []
    with pytest.raises(SecateurError, match="32 bits a weight found"):
        verify(artifact.path, "int8", model, [promise])


# --- a run ----------------------------------------------------------------------------------------


def test_prune_then_quantize_is_one_file_that_holds_both_promises(tmp_path):
    recipe = Recipe(
        steps=[
            Prune(sparsity=0.75, select=Select(frozen=True)),
            Quantize(bits=4, otherwise=8, select=Select(include=("hidden",))),
        ],
        train=Train(epochs=2, batch_size=16, learning_rate=0.01),
        export=Export(formats=("keras", "dynamic")),
        control=False,
    )
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    model = net()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = images(320)
    model.fit(x, y, epochs=4, batch_size=16, verbose=0)
    made = run(model, recipe, (x, y), tmp_path / "out")
    names = [row["row"] for row in made.rows]
    assert names == ["baseline-keras", "baseline-dynamic", "quantized-keras", "quantized-int8"]
    assert [stage["name"] for stage in made.record["stages"]] == ["baseline", "pruned", "quantized"]
    pruned, quantized = made.record["stages"][1:]
    assert {p["kind"] for p in quantized["promises"]} == {"zeros", "bits"}
    assert quantized["epochs"] == 0 and quantized["weights"] == pruned["weights"]
    kernels = {w.path: w.read() for w in weight_table(made.model) if w.role == "kernel"}
    promises = [Promise(p, "zeros", v == 0, v.shape) for p, v in kernels.items()]
    bits = {**dict.fromkeys(kernels, 8), "hidden/kernel": 4}
    promises += [Promise(p, "bits", bits[p], v.shape) for p, v in kernels.items()]
    assert all(p.count == int(0.75 * p.size + 0.5) for p in promises if p.kind == "zeros")
    file = tmp_path / "out" / "quantized-int8.tflite"
    findings = verify(file, "int8", made.model, promises, images()[0]).findings
    assert len(findings) == 8
    require(findings)
    scored = {row["row"]: row["accuracy"] for row in made.rows}
    assert scored["quantized-int8"] >= scored["quantized-keras"] - 0.05
