"""Damaged and hostile files: a measurement, or one line that names the file; nothing else.

Every file goes through `measure` and `inspect` in a worker process: what ends or blocks the worker
would have ended or blocked the user's.
"""

import io
import json
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.mutations import (
    BOMBS,
    DAMAGES,
    Pickled,
    onnx_bomb,
    packed,
    parts_of,
    payload,
    rewritten_tflite,
)

WORKER = """
import json, sys
from pathlib import Path
from secateur.errors import SecateurError
from secateur.inspection import inspect
from secateur.measurement import measure
from secateur.runtimes import keras_files, trial
keras_files.SECONDS = trial.SECONDS = 10
for path in map(Path, sys.argv[1:]):
    print(json.dumps([path.name, "begun"]), flush=True)
    for act in (measure, inspect):
        try:
            act(path)
            found = "fine"
        except SecateurError as error:
            found = "refused: " + str(error)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        print(json.dumps([path.name, found]), flush=True)
"""


def outcomes(folder, seconds=100):
    """What `measure` and `inspect` said of every file in a folder: {name: [both]}."""
    paths = sorted(folder.iterdir())
    shares = [paths[::2], paths[1::2]] if len(paths) > 50 else [paths]
    with ThreadPoolExecutor() as workers:
        parts = list(workers.map(lambda share: _outcomes(share, seconds), shares))
    return {name: both for part in parts for name, both in part.items()}


def _outcomes(paths, seconds):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", WORKER, *map(str, paths)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"blocked after {(late.stdout or b'')[-300:]!r}")
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, said = json.loads(line)
        found.setdefault(name, [])
        if said != "begun":
            found[name].append(said)
    last = next(reversed(found), None)
    assert done.returncode == 0, f"ended with {done.returncode} at {last}: {done.stderr[-500:]}"
    assert set(found) == {path.name for path in paths}
    return found


def never_worse_than_refused(folder, seconds=100):
    """Every file measured and inspected, or refused in a line that names it; how many were."""
    found = outcomes(folder, seconds)
    for name, both in found.items():
        assert len(both) == 2
        for said in both:
            assert said == "fine" or said.startswith("refused: "), f"{name}: {said}"
            assert "\n" not in said and len(said) < 1000, f"{name}: {said}"
            assert said == "fine" or name in said, f"{name} is not named: {said}"
    return sum(both[0] != "fine" for both in found.values())


def damaged(seed_file, folder, n, seed):
    """Write n damaged copies of a file, of every kind in turn."""
    rng, blob = np.random.default_rng(seed), seed_file.read_bytes()
    folder.mkdir(exist_ok=True)
    for i in range(n):
        damage = DAMAGES[i % len(DAMAGES)]
        name = f"{seed_file.stem}-{i:03}-{damage.__name__}{seed_file.suffix}"
        (folder / name).write_bytes(damage(blob, rng))
    return folder


def rewritten(seed_file, folder, n, seed):
    """Write n `.tflite` files that hold together and say something else: a few fields changed."""
    rng, blob = np.random.default_rng(seed), seed_file.read_bytes()
    folder.mkdir()
    for i in range(n):
        name = f"{seed_file.stem}-{i:03}.tflite"
        (folder / name).write_bytes(rewritten_tflite(blob, rng))
    return folder


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Small real files of every kind, by suffix or format."""
    import keras

    from secateur import conversion
    from secateur.runtimes.keras import save_model

    layers, folder = keras.layers, tmp_path_factory.mktemp("seeds")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.DepthwiseConv2D(3),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    kernel, _ = model.layers[-1].get_weights()
    kernel[::2] = 0
    model.layers[-1].set_weights([kernel, np.ones(3)])
    for suffix in ("keras", "h5"):
        save_model(model, folder / f"seed.{suffix}")
    x = np.random.default_rng(0).random((8, 8, 8, 2), dtype="float32")
    formats = ("float32", "int8", "sparse")
    for format, blob in conversion.to_litert(model, formats, calibration=x).items():
        (folder / f"{format}.tflite").write_bytes(blob)
    assert set(map(tuple, outcomes(folder).values())) == {("fine", "fine")}
    return folder


TFLITE = ("float32.tflite", "int8.tflite", "sparse.tflite")


@pytest.mark.parametrize("name", TFLITE)
def test_damaged_tflite_files(seeds, tmp_path, name):
    assert never_worse_than_refused(damaged(seeds / name, tmp_path / "bad", 24, 1)) > 8


@pytest.mark.parametrize("name", TFLITE)
def test_tflite_files_that_hold_together_and_lie(seeds, tmp_path, name):
    assert never_worse_than_refused(rewritten(seeds / name, tmp_path / "bad", 12, 1)) > 2


def test_damaged_keras_files(seeds, tmp_path):
    for name in ("seed.keras", "seed.h5"):
        folder = damaged(seeds / name, tmp_path / "bad", 9, 1)
    assert never_worse_than_refused(folder) > 4


@pytest.mark.slow
@pytest.mark.parametrize("name", TFLITE)
def test_hundreds_of_damaged_tflite_files(seeds, tmp_path, name):
    assert never_worse_than_refused(damaged(seeds / name, tmp_path / "a", 180, 2), 400) > 80
    assert never_worse_than_refused(rewritten(seeds / name, tmp_path / "b", 90, 2), 400) > 30


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seed.keras", "seed.h5"])
def test_hundreds_of_damaged_keras_files(seeds, tmp_path, name):
    assert never_worse_than_refused(damaged(seeds / name, tmp_path / "bad", 120, 2), 400) > 40


def test_hostile_keras_files_run_nothing_and_are_refused(seeds, tmp_path):
    import h5py

    folder, marker, outside = tmp_path / "a" / "bad", tmp_path / "ran", tmp_path / "outside"
    folder.mkdir(parents=True)
    parts = parts_of(seeds / "seed.keras")

    def write(name, layer, **more):
        changed = json.loads(parts["config.json"])
        changed["config"]["layers"].insert(1, layer)
        packed(folder / name, {**parts, "config.json": json.dumps(changed), **more})

    code = payload(marker)
    function = {"class_name": "__lambda__", "config": {"code": code}}
    settings = {"name": "l", "function": function}
    keras_lambda = {"module": "keras.layers", "class_name": "Lambda", "config": settings}
    write("lambda.keras", {**keras_lambda, "registered_name": None})
    system = {"module": "os", "class_name": "system", "config": f"touch {marker}"}
    write("system.keras", {**system, "registered_name": "system"})
    run = {
        "module": "subprocess",
        "class_name": "Popen",
        "config": {"args": ["touch", str(marker)]},
    }
    write("popen.keras", {**run, "registered_name": None})
    deep = "[" * 100_000 + "]" * 100_000
    packed(folder / "deep.keras", {**parts, "config.json": deep})

    arrays = io.BytesIO()
    np.savez(arrays, a=np.array([Pickled(marker)], dtype=object))
    without = {name: content for name, content in parts.items() if name != "model.weights.h5"}
    packed(folder / "pickle.keras", {**without, "model.weights.npz": arrays.getvalue()})
    packed(folder / "weightless.keras", without)
    packed(folder / "empty.keras", {})

    with h5py.File(folder / "lambda.h5", "w") as file, h5py.File(seeds / "seed.h5") as old:
        old.copy("model_weights", file)
        model = json.loads(old.attrs["model_config"])
        settings = {"name": "l", "function": [code, None, None], "function_type": "lambda"}
        model["config"]["layers"].insert(1, {"class_name": "Lambda", "config": settings})
        file.attrs["model_config"] = json.dumps(model)
        file.attrs["keras_version"] = "2.4.0"
    for name in ("../../outside", str(outside), "assets/../../../outside"):
        parts[name] = b"x"
    packed(folder / "leaving.keras", parts)  # Keras takes what it knows by name: such files load
    assert never_worse_than_refused(folder) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.slow
def test_files_that_unfold_to_more_than_they_hold_are_refused(seeds, tmp_path):
    import h5py

    parts = parts_of(seeds / "seed.keras")
    folder = tmp_path / "bad"
    folder.mkdir()
    zeros = bytes(100 << 20)
    for name in ("config.json", "metadata.json", "model.weights.h5"):
        packed(folder / f"{name}.keras", {**parts, name: zeros}, zipfile.ZIP_DEFLATED)
    weights = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        file.create_dataset("huge", (2**40,), "float32")
    packed(folder / "shape.keras", {**parts, "model.weights.h5": weights.getvalue()})
    for name in ("shape", "external", "link", "packed"):
        (folder / f"{name}.h5").write_bytes((seeds / "seed.h5").read_bytes())
        with h5py.File(folder / f"{name}.h5", "r+") as file:
            group = file["model_weights"]
            if name == "shape":
                group.create_dataset("huge", (2**20, 2**20), "float32")
            elif name == "external":
                secret = [(str(seeds / "seed.keras"), 0, 400)]
                group.create_dataset("other", (100,), "float32", external=secret)
            elif name == "link":
                group["other"] = h5py.ExternalLink(str(seeds / "seed.h5"), "/model_weights")
            else:
                zeros = np.zeros(30 << 20, np.uint8)
                group.create_dataset("zeros", data=zeros, compression="gzip", chunks=(30 << 20,))
    assert never_worse_than_refused(folder) == 8


def test_what_is_no_file_is_refused(tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for suffix in (".tflite", ".keras", ".h5"):
        (folder / f"empty{suffix}").touch()
        (folder / f"folder{suffix}").mkdir()
        (folder / f"loop{suffix}").symlink_to(folder / f"loop{suffix}")
        (folder / f"dangling{suffix}").symlink_to(tmp_path / "nowhere")
        (folder / f"endless{suffix}").symlink_to("/dev/zero")
        os.mkfifo(folder / f"pipe{suffix}")
    (folder / "unreadable.h5").touch(mode=0)
    (folder / "unreadable.tflite").touch(mode=0)
    assert never_worse_than_refused(folder) == 20


@pytest.mark.slow
def test_one_kind_under_the_name_of_another_is_refused(seeds, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    kinds = (".tflite", ".keras", ".h5")
    files = dict(zip(kinds, ("float32.tflite", "seed.keras", "seed.h5"), strict=True))
    for real in kinds:
        for told in (*kinds, ".onnx", ".txt", ""):
            if told != real:
                blob = (seeds / files[real]).read_bytes()
                (folder / f"{real[1:]}-as{told}").write_bytes(blob)
    found = outcomes(folder)
    assert all(measured != "fine" for measured, _ in found.values())
    never_worse_than_refused(folder)


@pytest.mark.slow
def test_the_command_says_it_in_one_line(seeds, tmp_path):
    blob = (seeds / "float32.tflite").read_bytes()
    cases = {"cut.tflite": blob[:1500], "none.tflite": b"", "no.h5": b"\x89HDF\r\n\x1a\n" * 9}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-m", "secateur", "measure", str(tmp_path / name)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "80"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith("error:") and done.stderr.count("\n") == 1
        assert name in done.stderr


@pytest.mark.parametrize("kind", BOMBS)
def test_an_onnx_that_loops_for_ever_or_asks_for_gigabytes_is_refused(kind, tmp_path, monkeypatch):
    from secateur.errors import SecateurError
    from secateur.measurement import measure

    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("SECATEUR_MAX_SECONDS", "3" if kind == "Loop" else "60")
    monkeypatch.setenv("SECATEUR_MAX_MEMORY", "500MB")
    path = tmp_path / "bomb.onnx"
    path.write_bytes(onnx_bomb(kind))
    assert path.stat().st_size < 3000
    with pytest.raises(SecateurError, match=r"bomb\.onnx .*(--max-|alloc|would require)"):
        measure(path, (np.zeros((2, 4), np.float32), np.zeros(2, int)))


def test_a_file_that_asks_for_more_than_it_stores_is_refused(seeds, tmp_path):
    import h5py

    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "units.h5").write_bytes((seeds / "seed.h5").read_bytes())
    with h5py.File(folder / "units.h5", "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][-1]["config"]["units"] = 2_000_000
        file.attrs["model_config"] = json.dumps(config)
    parts = parts_of(seeds / "seed.keras")
    config = json.loads(parts["config.json"])
    config["config"]["layers"][-1]["config"]["units"] = 2_000_000
    packed(folder / "units.keras", {**parts, "config.json": json.dumps(config)})
    config = json.loads(parts["config.json"])
    upsampled = {"name": "up", "size": [40_000, 40_000]}
    config["config"]["layers"].insert(
        1, {"module": "keras.layers", "class_name": "UpSampling2D", "config": upsampled}
    )
    config["config"]["layers"] = config["config"]["layers"][:2]
    packed(folder / "outputs.keras", {**parts, "config.json": json.dumps(config)})
    assets = {f"assets/{k}": bytes(1 << 24) for k in range(20)}
    packed(folder / "assets.keras", {**parts, **assets}, zipfile.ZIP_DEFLATED)
    found = outcomes(folder)
    assert never_worse_than_refused(folder) == 4, found
    assert "bytes of weights and the file stores" in found["units.h5"][0]
    assert "--max-memory" in found["outputs.keras"][0]
    assert "in an archive of" in found["assets.keras"][0]


def unsafe(blob):
    """A file that LiteRT accepts and crashes on: a convolution by depth without its bias."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(blob, 0))
    (operator,) = [
        o for o in model.subgraphs[0].operators if len(o.inputs) == 3 and _deep(model, o)
    ]
    operator.inputs = operator.inputs[:2]
    builder = schema.flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _deep(model, operator):
    return model.operatorCodes[operator.opcodeIndex].builtinCode == 4


def test_a_file_that_crashes_the_interpreter_ends_only_the_trial(seeds, tmp_path):
    from secateur.errors import SecateurError
    from secateur.runtimes import litert

    path = tmp_path / "crash.tflite"
    path.write_bytes(unsafe((seeds / "int8.tflite").read_bytes()))
    with pytest.raises(SecateurError, match=r"crash\.tflite does not run.*crashed with SIGSEGV"):
        litert.load(path)


def test_a_file_is_tried_once(seeds, monkeypatch):
    from secateur.runtimes import litert, trial

    monkeypatch.setattr(trial, "_passed", set())
    litert.load(seeds / "int8.tflite")
    assert len(trial._passed) == 1
    monkeypatch.setattr(trial, "run_python", lambda *_, **__: pytest.fail("tried again"))
    litert.load(seeds / "int8.tflite")


def test_lists_that_would_keep_a_reader_busy_are_refused(tmp_path):
    """Thousands of operators that share one list of thousands of inputs, in a small file."""
    from ai_edge_litert import schema_py_generated as schema

    from secateur.errors import SecateurError
    from secateur.tflite import TfliteFile

    builder = schema.flatbuffers.Builder(1024)
    builder.StartVector(4, 20_000, 4)
    for _ in range(20_000):
        builder.PrependInt32(0)
    inputs = builder.EndVector()
    operators = []
    for _ in range(3000):
        schema.OperatorStart(builder)
        schema.OperatorAddInputs(builder, inputs)
        operators.append(schema.OperatorEnd(builder))
    schema.SubGraphStartOperatorsVector(builder, len(operators))
    for operator in operators:
        builder.PrependUOffsetTRelative(operator)
    vector = builder.EndVector()
    schema.SubGraphStart(builder)
    schema.SubGraphAddOperators(builder, vector)
    graph = schema.SubGraphEnd(builder)
    schema.ModelStartSubgraphsVector(builder, 1)
    builder.PrependUOffsetTRelative(graph)
    graphs = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    with pytest.raises(SecateurError, match=r"lists of 60,\d{3},\d{3} entries in"):
        TfliteFile.parse(bytes(builder.Output()), "busy.tflite")


def test_a_first_run_that_does_not_end_is_told(seeds, tmp_path, monkeypatch):
    from secateur.errors import SecateurError
    from secateur.runtimes import keras_files, litert, trial

    monkeypatch.setattr(trial, "_passed", set())
    monkeypatch.setenv("SECATEUR_MAX_SECONDS", "0.01")
    monkeypatch.setattr(keras_files, "_passed", {})
    path = tmp_path / "float32.tflite"
    path.write_bytes((seeds / "float32.tflite").read_bytes())
    with pytest.raises(
        SecateurError, match=r"run of .*float32\.tflite in LiteRT was still at work"
    ):
        litert.load(path)
    with pytest.raises(SecateurError, match=r"reading .*seed\.h5 was still at work"):
        keras_files.check(seeds / "seed.h5")
