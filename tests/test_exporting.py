"""Every format is written, found again weight by weight, and all of them or none get a name."""

import resource

import keras
import numpy as np
import pytest
from tests.exporting_cases import (
    EVERY,
    STORED,
    exported,
    left_in,
    pruned,
    randomized,
    samples,
    values,
)

from secateur import exporting, zoo
from secateur.artifact import FORMATS
from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.promises import Promise
from secateur.runtimes import litert, runtime_for
from secateur.verification import compare, verify

layers = keras.layers


@pytest.fixture(scope="module")
def x():
    return samples()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("out"))


# --- what is written ------------------------------------------------------------------------------


def test_every_format_is_written_under_its_name(made):
    *_, artifacts, out = made
    assert tuple(artifacts) == EVERY
    names = [f"pruned-{format}{suffix}" for format, suffix in FORMATS.items()]
    assert left_in(out) == sorted(names)
    for artifact in artifacts.values():
        assert artifact.path.stat().st_size == artifact.bytes
        assert artifact.stage == "pruned" and len(artifact.sha256) == 64
    assert artifacts["float32"].bytes <= 85_040 and artifacts["dynamic"].bytes <= 24_384


def test_parity_is_recorded(made):
    *_, artifacts, _ = made
    for format, artifact in artifacts.items():
        assert artifact.parity["n"] == 64
        limit = {"float32": 1e-4, "float16": 1e-2, "int8": 0.2}[STORED[format]]
        assert artifact.parity["largest"] <= limit
    assert artifacts["dynamic"].parity["relative_rms"] > 1e-4  # it is rounded, and says so


def test_each_weight_is_found_in_the_file(made):
    *_, artifacts, _ = made
    for format, artifact in artifacts.items():
        found = artifact.tensors
        assert set(found) == {"conv2d/kernel", "conv2d/bias", "dense/kernel", "dense/bias"}
        assert all(record["tensor"] for record in found.values())
        for kernel in ("conv2d/kernel", "dense/kernel"):
            assert found[kernel]["dtype"] == STORED[format]
            assert "skipped" not in found[kernel]
    layout = artifacts["float32"].tensors["conv2d/kernel"]["layout"]
    assert layout == "(..., in, out) -> (out, ..., in)"


def test_verify_reports_the_promises_on_the_files_own_tensors(made, x):
    model, promises, artifacts, _ = made
    for format, artifact in artifacts.items():
        verified = verify(artifact.path, format, model, promises, x)
        assert [finding.ok for finding in verified.findings] == [True, True]
        conv, dense = verified.findings
        if STORED[format] != "int8":
            assert (conv.extra_zeros, dense.extra_zeros) == (0, 0)
        elif format != "int4":
            assert (conv.extra_zeros, dense.extra_zeros) == (0, 1)


def test_without_data_random_inputs_are_compared(made, tmp_path):
    model, promises, *_ = made
    (artifact,) = export(model, ["keras"], tmp_path, stage="s", promises=promises)
    assert artifact.parity["n"] == 64 and artifact.parity["on"] == "random inputs"


def test_the_model_is_not_changed(made, tmp_path, x):
    model, *_ = made
    model.compile("adam", "mse")
    before, optimizer = [values(w) for w in model.weights], model.optimizer
    export(model, ["keras", "h5"], tmp_path, stage="s", data=x)
    assert model.optimizer is optimizer and model.compiled
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, values(new))


# --- other failures -------------------------------------------------------------------------------


def test_ctrl_c_leaves_nothing(made, x, tmp_path):
    def stop(name):
        if name == "s-h5.h5":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(made[0], ["keras", "h5"], tmp_path / "out", stage="s", data=x, progress=stop)
    assert left_in(tmp_path / "out") == []


def test_a_full_disk_leaves_nothing(tmp_path):
    """The limit is set when the first file is about to be written: after any conversion."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # On other backends a process for the conversion would be started: the disk is the same.
    formats = ["keras", "h5", "float32"][: 3 if keras.backend.backend() == "tensorflow" else 2]
    model = zoo.build("lab-cnn")
    for format in formats:
        with pytest.raises(SecateurError) as full:
            try:
                export(
                    model, [format], tmp_path / "out", stage="s",
                    progress=lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard)),
                )  # fmt: skip
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        name = f"s-{format}{FORMATS[format]}"
        assert f"{name} could not be written (File too large)" in str(full.value)
        assert "\n" not in str(full.value)
    assert left_in(tmp_path / "out") == []


def test_a_folder_that_cannot_be_made_is_named(made, x, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SecateurError, match=r"out/s-keras.keras could not be written"):
        export(made[0], ["keras"], tmp_path / "out", stage="s", data=x)


def test_nan_weights_are_named(tmp_path):
    net = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="head")])
    net.layers[0].kernel.assign(np.full((4, 2), np.nan))
    with pytest.raises(SecateurError, match="NaN or infinity received in head/kernel"):
        export(net, ["keras"], tmp_path, stage="s")


def test_a_misspelt_format_names_the_nearest(made, tmp_path):
    with pytest.raises(SecateurError, match="did you mean .dynamic"):
        export(made[0], ["dynamik"], tmp_path, stage="s")
    assert left_in(tmp_path) == []


def test_a_promise_for_an_unknown_weight_is_refused(made, x, tmp_path):
    promise = Promise("gone/kernel", "shape", (2,), (2,))
    with pytest.raises(SecateurError, match="gone/kernel"):
        export(made[0], ["keras"], tmp_path, stage="s", promises=[promise], data=x)


def test_data_of_another_shape_is_refused(made, tmp_path):
    with pytest.raises(SecateurError, match=r"\(8, 8\) received .* expected \(28, 28\)"):
        export(made[0], ["keras"], tmp_path, stage="s", data=np.zeros((3, 8, 8), "float32"))


# --- layouts and folding --------------------------------------------------------------------------


def test_every_layout_is_found_and_its_zeros_are_checked(tmp_path):
    keras.utils.set_random_seed(0)
    image, line = keras.Input((12, 12, 3), name="image"), keras.Input((9, 5), name="line")
    a = layers.Conv2D(8, 3, use_bias=False, name="conv")(image)
    a = layers.ReLU()(layers.BatchNormalization()(a))
    a = layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, name="depth")(a)
    a = layers.ReLU()(layers.BatchNormalization()(a))
    a = layers.Conv2DTranspose(6, 3)(layers.SeparableConv2D(7, 3)(a))
    a = layers.GlobalAveragePooling2D()(a)
    b = layers.MultiHeadAttention(2, 3)(line, line)
    b = layers.Flatten()(layers.Conv1D(4, 3)(b))
    c = layers.BatchNormalization()(layers.Dense(16, name="middle")(layers.Concatenate()([a, b])))
    net = randomized(keras.Model([image, line], layers.Dense(3, name="last")(c)))
    promises = pruned(net, 0.5)
    assert len(promises) >= 6
    by_format = {}
    for artifact in export(net, ["float32", "dynamic"], tmp_path, stage="s", promises=promises):
        by_format[artifact.format] = artifact.tensors
    kernels = {w.path for w in exporting.weight_table(net) if w.role == "kernel"}
    for found in by_format.values():
        assert kernels == {path for path in kernels if found[path]["tensor"]}
        folded = {path for path in kernels if "folded" in found[path]}
        # into the layer before, or (between two Dense) into the layer after
        assert {"conv/kernel", "depth/kernel"} <= folded
        assert len(folded & {"middle/kernel", "last/kernel"}) == 1


def test_a_channel_folded_to_zero_keeps_its_promise(tmp_path):
    net = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, name="c"),
            layers.BatchNormalization(),
            layers.ReLU(),
        ]
    )
    randomized(net)
    gamma = values(net.layers[1].gamma)
    gamma[1] = 0
    net.layers[1].gamma.assign(gamma)
    promises = pruned(net)
    (artifact,) = export(net, ["float32"], tmp_path, stage="s", promises=promises)
    assert artifact.tensors["c/kernel"]["folded"]


def of_one_channel():
    """A 1x1 convolution of a grey image and BatchNormalization: one element for each factor."""
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(8, 1, name="thin"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(),
            layers.Conv2D(4, 3, name="thick"),
            layers.BatchNormalization(name="bn2"),
        ]
    )
    return randomized(net)


def test_a_factor_for_every_element_is_no_evidence(tmp_path):
    """Whatever has the size of such a weight would be "found": the file says that it was not."""
    net = of_one_channel()
    (artifact,) = export(net, ["float32"], tmp_path, stage="s")
    assert artifact.tensors["thick/kernel"]["folded"]
    for path in ("thin/kernel", "thin/bias", "bn/gamma", "bn/moving_variance", "thick/bias"):
        assert artifact.tensors[path]["tensor"] is None, path
        assert artifact.tensors[path]["reason"].startswith("not located"), path


def test_zeros_in_the_same_places_are_evidence(tmp_path):
    """So that zeros promised in such a kernel can be checked in the file, and their loss be seen."""
    net = of_one_channel()
    promises = pruned(net, 0.5)
    assert promises[0].path == "thin/kernel"
    (artifact,) = export(net, ["float32"], tmp_path, stage="s", promises=promises)
    assert artifact.tensors["thin/kernel"]["folded"]
    kernel = values(net.layers[0].kernel)
    lost = kernel.copy()
    lost[tuple(np.argwhere(kernel == 0)[0])] = 1e-30
    net.layers[0].kernel.assign(lost)
    with pytest.raises(SecateurError, match="thin/kernel"):
        verify(artifact.path, "float32", net, promises)


def test_one_differing_sample_of_few_is_not_a_broken_file():
    expected = {"out": np.array([[1.0, 0.99], [1.0, 0.0], [0.0, 1.0]])}
    given = {"out": np.array([[0.99, 1.0], [1.0, 0.0], [0.0, 1.0]])}
    assert compare(expected, given, "dynamic")["agreement"] == pytest.approx(2 / 3)


def test_not_a_number_and_another_shape_are_refused():
    expected = {"out": np.ones((2, 3))}
    for wrong in (np.full((2, 3), np.nan), np.ones((2, 2))):
        with pytest.raises(SecateurError, match=r"expected \(2, 3\), finite"):
            compare(expected, {"out": wrong}, "dynamic")


# --- single layers, and what is said of a file ----------------------------------------------------


def wide():
    """A convolution and two Dense layers whose inputs are multiples of 32."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.MaxPooling2D(3),
            layers.Flatten(),
            layers.Dense(64, activation="relu", name="hidden"),
            layers.Dense(3, name="head"),
        ]
    )


def squares(n=32):
    return np.random.default_rng(0).random((n, 8, 8, 1), dtype="float32")


def stored(artifact):
    return [artifact.tensors[f"{name}/kernel"]["bits"] for name in ("conv", "hidden", "head")]


def test_single_layers_have_widths_of_their_own(tmp_path):
    net, x = wide(), squares()
    settings = {"stage": "s", "calibration": x, "data": x}
    widths = {"*": 8, "hidden": "4/32", "head": "float"}
    (mixed,) = export(net, ["int4"], tmp_path, layers=widths, **settings)
    assert stored(mixed) == [8, 4, 32] and mixed.format == "int4"
    assert "left in float as selected: head/kernel" in mixed.notes
    # The patterns are read in their order: the last that names a layer counts.
    widths = {"head": 4, "h*": 8, "conv": 4}
    for format in ("int8", "int16x8"):
        (codes,) = export(net, [format], tmp_path, layers=widths, **settings)
        assert stored(codes) == [4, 8, 8] and codes.format == format
    (all_four,) = export(net, ["int4"], tmp_path, layers={"head": 4}, **settings)
    (plain,) = export(net, ["int4"], tmp_path, **settings)
    assert all_four.sha256 == plain.sha256  # what the format does anyway changes no byte


@pytest.mark.parametrize(
    ("formats", "widths", "message"),
    [
        (["int4"], {"haed": 4}, "'haed' matches no layer or weight; did you mean 'head'"),
        (["int4"], {"head": "5"}, "bits 5 received, expected 4, 8, 16 or float"),
        (["int4"], {"head": "4:32"}, "width '4:32' received, expected 4, 8, 16 or float, or 4/32"),
        (["int4"], {"conv": "4/32"}, r"conv/kernel \(8, 3, 3, 1\) of CONV_2D, expected a fully"),
        (["int8"], {"hidden": "4/32"}, "expected a fully connected layer .* in float"),
        (["int8"], {"head": 16}, "16 bits received for head/kernel in a file of integers"),
        (["float16"], {"head": 8}, "8 bits received for head/kernel in a float16 file"),
        (["int8"], {"head": "float"}, r"FULLY_CONNECTED in float received \(head/kernel left in"),
        (["keras", "float32"], {"head": 4}, "with keras, float32, expected formats that have them"),
        (["int8", "onnx-int8"], {"head": 4}, "with int8, onnx-int8, expected formats that have"),
    ],
)
def test_widths_that_no_file_has_are_refused(formats, widths, message, tmp_path):
    with pytest.raises(SecateurError, match=message) as refused:
        export(wide(), formats, tmp_path, stage="s", layers=widths, calibration=squares())
    assert "\n" not in str(refused.value) and left_in(tmp_path) == []


def test_equal_kernels_cannot_have_two_widths(tmp_path):
    x = keras.Input((8,))
    first, second = layers.Dense(8, name="first"), layers.Dense(8, name="second")
    net = keras.Model(x, second(layers.ReLU()(first(x))))
    second.kernel.assign(values(first.kernel))
    with pytest.raises(SecateurError, match="second/kernel received as 8 bits and first/kernel as"):
        export(net, ["int4"], tmp_path, stage="s", layers={"first": "float", "second": 8})


def test_blocks_without_weights_load(tmp_path):
    """Pruning leaves such blocks; the quantizer gives them a scale of 0, which LiteRT refuses."""
    net, x = wide(), squares()
    kernel = values(net.get_layer("hidden").kernel)
    kernel[:32, 1], kernel[:, 2] = 0, 0
    kernel[:32, 3] *= 1e-4 / np.abs(kernel[:32, 3]).max()  # a scale below a half's normal range
    net.get_layer("hidden").kernel.assign(kernel)
    promise = Promise("hidden/kernel", "zeros", kernel == 0, kernel.shape)
    (artifact,) = export(
        net, ["int4"], tmp_path, stage="s", layers={"hidden": "4/32"}, data=x, promises=[promise]
    )
    session = runtime_for(artifact.path).load(artifact.path, 1)
    found = next(c for c in session.constants() if c.values.shape == (64, 32))
    step = np.finfo(np.float16).smallest_normal
    assert found.step().min() == step
    assert np.abs(found.dequantized()[3] - kernel[:32, 3]).max() <= 0.501 * step


def test_a_sparse_file_without_zeros_says_that_nothing_was_encoded(tmp_path):
    net = wide()
    plain, dense = export(net, ["float32", "sparse"], tmp_path, stage="s")
    assert plain.bytes == dense.bytes  # some bytes of metadata apart, the float32 file
    assert any(note.startswith("nothing was encoded as sparse") for note in dense.notes)
    kernel = values(net.get_layer("hidden").kernel)
    net.get_layer("hidden").kernel.assign(
        kernel * (np.arange(kernel.size) % 10 == 0).reshape(kernel.shape)
    )
    plain, sparse = export(net, ["float32", "sparse"], tmp_path, stage="p")
    assert sparse.bytes < plain.bytes
    assert not any("sparse" in note for note in sparse.notes)


def test_what_a_quantizer_leaves_in_float_is_said(tmp_path):
    keras.utils.set_random_seed(0)
    back = keras.Sequential([keras.Input((5, 5, 2)), layers.Conv2DTranspose(4, 3, name="back")])
    (artifact,) = export(back, ["onnx-dynamic"], tmp_path, stage="s")
    assert artifact.tensors["back/kernel"]["skipped"] == "left in float by the quantizer"
    assert artifact.notes == ("left in float by the quantizer: back/kernel",)
    promise = Promise("back/kernel", "bits", 8, (3, 3, 4, 2))
    with pytest.raises(SecateurError, match="at most 8 bits a weight of back/kernel: 32 bits"):
        verify(artifact.path, "onnx-dynamic", back, [promise])
    words = keras.Sequential([keras.Input((3,), dtype="int32"), layers.Embedding(9, 4, name="e")])
    (artifact,) = export(words, ["dynamic"], tmp_path, stage="s")
    assert artifact.tensors["e/embeddings"]["skipped"] == "left in float by the quantizer"


def test_blocks_are_refused_by_the_kernels_that_misread_them(tmp_path):
    net = wide()
    (artifact,) = export(net, ["int4"], tmp_path, stage="s", layers={"hidden": "4/32"})
    with pytest.raises(SecateurError, match=r"answers wrongly: FULLY_CONNECTED .*in blocks.*int4"):
        litert.load(artifact.path, kernels="reference")
