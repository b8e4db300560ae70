"""One weight alone: exact on nets small enough to know the answer, on whichever backend runs."""

import json
import sys

import keras
import numpy as np
import pytest
from keras import layers

from secateur import cli, cli_sensitivity
from secateur.arrays.affine import fake_quantized
from secateur.datasets import Data, Split, load
from secateur.errors import SecateurError
from secateur.methods.prune import Prune
from secateur.sensitivity import pruning_sensitivity, quantization_sensitivity
from secateur.weights import Select, weight_table


def two_paths():
    """Two classes told by the sign of the first input, through `all`; `dead` feeds nothing."""
    inputs = keras.Input((4,), name="x")
    useful = layers.Dense(2, name="all", use_bias=False)(inputs)
    idle = layers.Dense(2, name="dead", use_bias=False)(inputs)
    silent = layers.Dense(2, name="silent", use_bias=False)(idle)
    net = keras.Model(inputs, layers.Add(name="sum")([useful, silent]))
    kernel = np.zeros((4, 2), np.float32)
    kernel[0] = [-0.1, 0.1]  # smaller than the rest of its weight: first to go
    kernel[1:] = 0.5  # adds the same to both outputs
    net.get_layer("all").kernel.assign(kernel)
    net.get_layer("dead").kernel.assign(np.arange(1, 9, dtype=np.float32).reshape(4, 2))
    net.get_layer("silent").kernel.assign(np.zeros((2, 2), np.float32))
    return net


def signs(n=40, labels=True):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    x[:, 0] = np.where(np.arange(n) % 2, 1.0, -1.0)
    y = (np.arange(n) % 2).astype(np.int64) if labels else None
    part = Split(x, y)
    # A test part that would be noticed: every label in it is wrong.
    test = Split(x, None if y is None else 1 - y)
    return Data("signs", train=part, validation=part, calibration=Split(x), test=test)


def by_path(records, level, key):
    return {r["path"]: r for r in records if r["path"] and r[level] == key}


def values(model):
    return [np.array(w, copy=True) for w in model.get_weights()]


def test_what_cannot_matter_costs_nothing_and_what_is_everything_collapses():
    records = pruning_sensitivity(two_paths(), signs(), sparsities=(0.5, 0.25))
    base = records[0]
    assert (base["path"], base["sparsity"], base["accuracy"], base["drop"]) == (None, 0.0, 1.0, 0.0)
    assert base["n"] == 40
    quarter = by_path(records, "sparsity", 0.25)
    assert set(quarter) == {"all/kernel", "dead/kernel", "silent/kernel"}
    # The two decisive weights are a quarter of the eight: both outputs then tie, and 0 is answered.
    assert quarter["all/kernel"]["accuracy"] == 0.5
    assert quarter["all/kernel"]["drop"] == 0.5
    assert quarter["all/kernel"]["zeros"] == 2
    assert quarter["all/kernel"]["loss"] > base["loss"]
    for path in ("dead/kernel", "silent/kernel"):
        assert quarter[path]["drop"] == 0.0
        assert quarter[path]["loss"] == base["loss"]
        assert quarter[path]["output_error"] == 0.0
    assert quarter["dead/kernel"]["shape"] == [4, 2]
    assert quarter["dead/kernel"]["size"] == 8
    assert [r["sparsity"] for r in records[1:3]] == [0.25, 0.5]
    json.dumps(records, allow_nan=False)


def test_output_error_by_hand():
    net, data = two_paths(), signs()
    found = by_path(pruning_sensitivity(net, data, sparsities=(0.25,)), "sparsity", 0.25)
    x, kernel = data.validation.x, weight_table(net)["all/kernel"].read()
    pruned = kernel * (np.abs(kernel) > 0.2)
    expected = np.sqrt(np.sum((x @ pruned - x @ kernel) ** 2) / np.sum((x @ kernel) ** 2))
    assert found["all/kernel"]["output_error"] == pytest.approx(expected, rel=1e-5)


def test_one_at_a_time_and_all_back_in_place(monkeypatch):
    """At every prediction exactly one weight of the copy differs, and none after the last."""
    from secateur import sensitivity

    net, seen = two_paths(), []
    original = values(net)
    predict = sensitivity.KerasSession.predict

    def watched(session, x, batch=256):
        # The caller's own model is never the one that is written to, not even for a moment.
        assert session.model is not net
        for mine, theirs in zip(net.get_weights(), original, strict=True):
            assert mine.tobytes() == theirs.tobytes()
        assert not any("call" in vars(layer) for layer in session.model.layers)
        now = session.model.get_weights()
        seen.append(tuple(not np.array_equal(a, b) for a, b in zip(now, original, strict=True)))
        return predict(session, x, batch)

    monkeypatch.setattr(sensitivity.KerasSession, "predict", watched)
    net.get_layer("silent").kernel.assign(np.float32([[1.0, 0.3], [0.2, 1.0]]))
    original[:] = values(net)
    pruning_sensitivity(net, signs(), sparsities=(0.5, 0.75))
    assert [sum(changed) for changed in seen] == [0, 1, 1, 1, 1, 1, 1]
    places = [changed.index(True) for changed in seen[1:]]
    assert places[::2] == places[1::2]  # both points of a weight, then the next one
    assert sorted(places[::2]) == [0, 1, 2]
    seen.clear()
    quantization_sensitivity(net, signs(), bits=(3, 2))
    assert [sum(changed) for changed in seen] == [0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("function", [pruning_sensitivity, quantization_sensitivity])
def test_the_model_is_unchanged_also_when_it_fails(function):
    net = two_paths()
    before = values(net)
    function(net, signs())

    def stop(label, done, total, text):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        function(net, signs(), progress=stop)
    for mine, theirs in zip(net.get_weights(), before, strict=True):
        assert mine.tobytes() == theirs.tobytes()


@keras.saving.register_keras_serializable("sensitivity")
class Counting(layers.Layer):
    """Counts how often Python, rather than compiled code, comes by."""

    traces = 0

    def call(self, x):
        Counting.traces += 1
        return x


def test_nothing_is_traced_again(backend, monkeypatch):
    """The first prediction compiles, and no other does, whatever is written into the weights."""
    if backend == "torch":
        pytest.skip("PyTorch runs eagerly")
    from secateur import sensitivity

    traced = []
    predict = sensitivity.KerasSession.predict

    def counted(session, x, batch=256):
        before = Counting.traces
        outputs = predict(session, x, batch)
        traced.append(Counting.traces - before)
        return outputs

    monkeypatch.setattr(sensitivity.KerasSession, "predict", counted)
    net = keras.Sequential(
        [keras.Input((4,)), layers.Dense(6, name="a"), Counting(), layers.Dense(2, name="b")]
    )
    # More than a batch, and not a multiple of it: a last batch of another size.
    pruning_sensitivity(net, signs(300), sparsities=(0.2, 0.5, 0.8))
    assert traced[0] >= 1
    assert traced[1:] == [0] * 6


def test_the_weights_are_ranked_once():
    asked = []

    def spy(weight):
        asked.append(weight.shape)
        return np.abs(weight)

    method = Prune(sparsity=0.5, criterion=spy)
    pruning_sensitivity(two_paths(), signs(), sparsities=(0.2, 0.5, 0.7), method=method)
    assert asked == [(4, 2), (4, 2), (2, 2)]


def test_patterns_bring_their_sparsity_and_criteria_their_evidence():
    net = two_paths()
    method = Prune(pattern="2:4", criterion="wanda", select=Select(include=("all", "dead")))
    records = pruning_sensitivity(net, signs(), method=method)
    assert {(r["path"], r["sparsity"], r["zeros"]) for r in records[1:]} == {
        ("all/kernel", 0.5, 4),
        ("dead/kernel", 0.5, 4),
    }
    taylor = Prune(sparsity=0.5, criterion="taylor")
    found = pruning_sensitivity(net, signs(), sparsities=(0.5,), method=taylor)
    # Only the decisive weights have a gradient of their own: asked by it, they stay.
    assert by_path(found, "sparsity", 0.5)["all/kernel"]["drop"] == 0.0


def test_quantization_by_hand():
    net, data = two_paths(), signs()
    records = quantization_sensitivity(net, data, bits=(2, 8))
    assert records[0]["bits"] is None
    assert [r["bits"] for r in records[1:3]] == [8, 2]
    kernel = weight_table(net)["all/kernel"].read()
    for bits in (2, 8):
        record = by_path(records, "bits", bits)["all/kernel"]
        rounded = fake_quantized(kernel, bits, (1,))
        error = np.linalg.norm(rounded - kernel) / np.linalg.norm(kernel)
        assert record["error"] == pytest.approx(error, rel=1e-6)
        assert record["sqnr_db"] == pytest.approx(-20 * np.log10(error), rel=1e-6)
        x = data.validation.x
        outputs = np.linalg.norm(x @ (rounded - kernel)) / np.linalg.norm(x @ kernel)
        assert record["layer_error"] == pytest.approx(outputs, rel=1e-4)
        assert record["output_error"] == pytest.approx(outputs, rel=1e-4)  # the rest adds nothing
        assert record["scale"] == "per output"
    # At 2 bits a weight is 0 or +-0.5: the decisive 0.1 is gone, and with it the answer.
    assert by_path(records, "bits", 2)["all/kernel"]["drop"] == 0.5
    assert by_path(records, "bits", 8)["all/kernel"]["drop"] == 0.0
    silent = by_path(records, "bits", 2)["silent/kernel"]
    assert (silent["error"], silent["sqnr_db"], silent["layer_error"]) == (0.0, None, 0.0)
    # `dead` is wrong in its own outputs and right in the model's.
    dead = by_path(records, "bits", 2)["dead/kernel"]
    assert dead["layer_error"] > 0.1
    assert dead["output_error"] == 0.0
    json.dumps(records, allow_nan=False)


def test_a_layer_is_judged_on_the_inputs_of_the_float_model():
    """The second of two layers, its own rounding alone: what the first would lose does not count."""
    net = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4, name="first", use_bias=False),
            layers.ReLU(),
            layers.Dense(3, name="second", use_bias=False),
        ]
    )
    data = signs()
    found = by_path(quantization_sensitivity(net, data, bits=(4,)), "bits", 4)
    first, second = (weight_table(net)[f"{name}/kernel"].read() for name in ("first", "second"))
    hidden = np.maximum(data.validation.x @ first, 0)
    lost = hidden @ (fake_quantized(second, 4, (1,)) - second)
    expected = np.linalg.norm(lost) / np.linalg.norm(hidden @ second)
    assert found["second/kernel"]["layer_error"] == pytest.approx(expected, rel=1e-4)


def test_embeddings_convolutions_and_recurrent_cells():
    tokens = keras.Input((6,), dtype="int32")
    vectors = layers.Embedding(9, 4, name="words")(tokens)
    state = layers.LSTM(3, name="memory")(vectors)
    depth = layers.DepthwiseConv1D(2, depth_multiplier=2, name="depth")(vectors)
    pooled = layers.GlobalAveragePooling1D()(depth)
    net = keras.Model(tokens, layers.Dense(2, name="d")(layers.Concatenate()([state, pooled])))
    x = np.random.default_rng(0).integers(0, 9, (40, 6)).astype(np.int32)
    part = Split(x, np.arange(40) % 2)
    data = Data("tokens", train=part, validation=part, calibration=None, test=None)
    records = quantization_sensitivity(net, data, bits=(4,))
    found = by_path(records, "bits", 4)
    assert set(found) == {
        *("words/embeddings", "memory/lstm_cell/kernel", "memory/lstm_cell/recurrent_kernel"),
        *("depth/kernel", "d/kernel"),
    }
    assert found["words/embeddings"]["scale"] == "per row"
    for record in found.values():
        assert 0 < record["error"] < 0.2
        assert 0 < record["layer_error"] < 0.3
    table = weight_table(net)["words/embeddings"].read()
    rows = fake_quantized(table, 4, (0,))
    error = np.linalg.norm(rows - table) / np.linalg.norm(table)
    assert found["words/embeddings"]["error"] == pytest.approx(error, rel=1e-5)


def test_without_labels_and_for_regression_only_outputs_are_compared():
    records = pruning_sensitivity(two_paths(), signs(labels=False), sparsities=(0.25,))
    for record in records:
        assert (record["accuracy"], record["loss"], record["mse"], record["drop"]) == (None,) * 4
    assert by_path(records, "sparsity", 0.25)["all/kernel"]["output_error"] > 0
    part = signs().validation
    targets = Split(part.x, part.x[:, :2])
    data = Data("line", train=targets, validation=targets, calibration=None, test=None)
    records = quantization_sensitivity(two_paths(), data, bits=(2,))
    assert records[1]["mse"] > 0
    assert records[1]["accuracy"] is None and records[1]["drop"] is None


def test_only_validation_samples_are_used_and_limited():
    data = signs()
    records = pruning_sensitivity(two_paths(), data, sparsities=(0.5,), limit=15)
    assert {r["n"] for r in records} == {15}
    assert records[0]["accuracy"] == 1.0  # on the test part it would be 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sparsities": (50,)}, "fix: 0.5 for 50 %"),
        ({"sparsities": (1.0,)}, "leaves no weight"),
        ({"sparsities": ()}, "expected fractions"),
        ({"select": Select(include=("al",))}, "did you mean 'all'"),
        ({"limit": 0}, "expected 1 sample or more"),
        ({"method": Prune(pattern="2:4"), "select": Select(include=("silent",))}, "fits none"),
        ({"method": Prune(pattern="2:4"), "sparsities": (0.75,)}, "leave the sparsity out"),
    ],
)
def test_bad_input_is_one_error(words, message):
    with pytest.raises(SecateurError, match=message) as caught:
        pruning_sensitivity(two_paths(), signs(), **words)
    assert "\n" not in str(caught.value)


def test_bad_bits_layers_and_data():
    with pytest.raises(SecateurError, match="from 2 to 16"):
        quantization_sensitivity(two_paths(), signs(), bits=(32,))
    with pytest.raises(SecateurError, match="expected whole numbers"):
        quantization_sensitivity(two_paths(), signs(), bits=())
    with pytest.raises(SecateurError, match="did you mean 'dead'"):
        quantization_sensitivity(two_paths(), signs(), select=Select(include=("deat",)))
    bare = load((signs().train.x, signs().train.y), validation_split=0.0)
    with pytest.raises(SecateurError, match="without a validation part"):
        pruning_sensitivity(two_paths(), bare)
    with pytest.raises(SecateurError, match="digits"):
        pruning_sensitivity(two_paths(), "digits")  # (8, 8) into 4 inputs
    net = two_paths()
    net.get_layer("all").kernel.assign(np.full((4, 2), np.nan, np.float32))
    with pytest.raises(SecateurError, match="NaN"):
        quantization_sensitivity(net, signs())


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """`secateur sensitivity` in this process: exit code, standard output and error output."""
    monkeypatch.chdir(tmp_path)
    if "sensitivity" not in [c.name or c.callback.__name__ for c in cli.app.registered_commands]:
        monkeypatch.setattr(
            cli.app, "registered_commands", list(cli.app.registered_commands), raising=True
        )
        cli.app.command()(cli_sensitivity.sensitivity)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["secateur", "sensitivity", *map(str, words)])
        for console in (cli._out, cli._err):
            monkeypatch.setattr(console, "_width", 160)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return call


def test_the_command_end_to_end_on_digits(command, tmp_path):
    net = keras.Sequential([keras.Input((64,)), layers.Dense(10, name="d")])
    net.save(tmp_path / "net.keras")
    code, printed, told = command(
        *("net.keras", "--data", "digits", "--prune", "0.5,0.9", "--bits", "4"),
        *("--html", "page.html", "--json", "found.json", "--csv", "found.csv"),
    )
    assert code == 0 and "digits: validation: 144 of 1,437 training samples" in told
    assert "One weight pruned alone" in printed and "One weight quantized alone" in printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["records"]) == 1 + 2 + 1 + 1
    assert found["records"][0]["n"] == found["data"]["sizes"]["validation"] == 144
    assert found["finding"] in " ".join(printed.split())
    assert (tmp_path / "found.csv").read_text().count("\n") == 6
    page = (tmp_path / "page.html").read_text()
    assert "d/kernel" in page and "net.keras" in page


def test_the_command_tells_in_one_line_what_is_wrong(command, tmp_path):
    two_paths().save(tmp_path / "net.keras")
    for words, message in (
        (("net.keras",), "no --data received"),
        (("net.keras", "--data", "digits", "--prune", "50"), "0.5 for 50 %"),
        (("net.keras", "--data", "digits", "--prune", "half"), "expected numbers with commas"),
        (("net.keras", "--data", "digits", "--html", "no/page.html"), "no folder"),
        (("gone.keras", "--data", "digits"), "not a file"),
    ):
        code, _, told = command(*words)
        assert code == 1
        assert told.strip().startswith("error:") and told.strip().count("\n") == 0
        assert message in told


def test_no_output_goes_onto_the_model_or_twice_onto_one_file(secateur, tmp_path):
    keras.Sequential([keras.Input((8, 8)), layers.Flatten(), layers.Dense(10)]).save("net.keras")
    before = (tmp_path / "net.keras").read_bytes()
    words = ("sensitivity", "net.keras", "--data", "digits")
    for outputs, cause in (
        (("--json", "./net.keras"), "which this command reads"),
        (("--json", "a", "--csv", tmp_path / "a"), "the file of --json too"),
    ):
        code, _, err = secateur(*words, *outputs)
        assert code == 1 and cause in err
    assert (tmp_path / "net.keras").read_bytes() == before
