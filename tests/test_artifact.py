"""Files are whole or not there: no half of one survives a full disk, a refusal or Ctrl-C."""

import gzip
import hashlib
import json
import subprocess
import sys

import pytest

from secateur import artifact
from secateur.artifact import describe, staged, write_atomically, write_json_atomically
from secateur.errors import SecateurError


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_bytes_text_and_writers_arrive_whole(tmp_path):
    write_atomically(tmp_path / "new" / "a.bin", b"\0\1")
    write_atomically(tmp_path / "new" / "b.txt", "zwölf")
    write_atomically(tmp_path / "new" / "c.txt", lambda path: path.write_text("c"))
    assert left_in(tmp_path / "new") == ["a.bin", "b.txt", "c.txt"]
    assert (tmp_path / "new" / "b.txt").read_text(encoding="utf-8") == "zwölf"


def test_the_temporary_file_keeps_its_suffix_and_folder(tmp_path):
    """Keras picks the format by the suffix, and a rename is atomic within one folder only."""
    with staged(tmp_path / "model.keras") as temporary:
        assert (temporary.suffix, temporary.parent) == (".keras", tmp_path)
        temporary.write_bytes(b"")


def test_what_a_killed_process_had_begun_goes_with_the_next_attempt(tmp_path):
    script = (
        "import os, pathlib, signal; from secateur.artifact import staged\n"
        "with staged(pathlib.Path('model.keras')) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert len(left_in(tmp_path)) == 1
    with staged(tmp_path / "model.keras") as mine:
        mine.write_text("whole")
        write_atomically(tmp_path / "model.keras.json", "another")
        assert mine.exists()
    assert left_in(tmp_path) == ["model.keras", "model.keras.json"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError, MemoryError])
def test_whatever_stops_the_writing_leaves_the_old_file_and_nothing_else(tmp_path, stop):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")

    def half(temporary):
        temporary.write_bytes(b"ne")
        raise stop

    with pytest.raises(stop):
        write_atomically(path, half)
    assert path.read_bytes() == b"old"
    assert left_in(tmp_path) == ["model.tflite"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    code = """
import resource, sys
from pathlib import Path
from secateur.artifact import write_atomically
from secateur.errors import SecateurError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(Path(sys.argv[1]), bytes(2000))
except SecateurError as error:
    print(error)
"""
    target = tmp_path / "model.tflite"
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "model.tflite could not be written (File too large)" in done.stdout
    assert left_in(tmp_path) == []


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SecateurError, match=r"file/model.h5 could not be written \(File exists\)"):
        write_atomically(tmp_path / "file" / "model.h5", b"1")
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(SecateurError, match=r"folder.h5 could not be written \(Is a directory"):
        write_atomically(tmp_path / "folder.h5", b"1")
    assert left_in(tmp_path) == ["file", "folder.h5"]


def test_json_is_valid_or_not_written(tmp_path):
    write_json_atomically(tmp_path / "run.json", {"zeros": [1, 2.5], "name": "é"})
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["name"] == "é"
    for wrong in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            write_json_atomically(tmp_path / "run.json", wrong)
    assert left_in(tmp_path) == ["run.json"]


def test_the_manifest_describes_the_bytes_on_the_disk(tmp_path):
    path = tmp_path / "pruned-dynamic.tflite"
    path.write_bytes(b"123")
    made = describe(path, format="dynamic", stage="pruned", parity={"agreement": 1.0}, tensors={})
    written = artifact.write_manifest(tmp_path, [made], {"seed": 3, "recipe": {"name": "lab"}})
    manifest = json.loads(written.read_text())
    (entry,) = manifest["files"]
    assert entry["path"] == "pruned-dynamic.tflite"
    assert (entry["format"], entry["stage"], entry["bytes"]) == ("dynamic", "pruned", 3)
    assert entry["sha256"] == hashlib.sha256(b"123").hexdigest()
    assert manifest["seed"] == 3 and manifest["recipe"] == {"name": "lab"}
    assert manifest["versions"]["keras"].startswith("3.")


def test_gzip_is_at_level_nine():
    data = b"".join(i.to_bytes(2) for i in range(3000)) * 3
    lengths = [len(gzip.compress(data, level, mtime=0)) for level in (1, 6, 9)]
    assert artifact.gzip_bytes(data) == lengths[-1] < lengths[0]


@pytest.fixture
def ran(tmp_path):
    """What a Run, a sweep and an export leave, without their contents."""
    out, runs, files = (tmp_path / name for name in ("out", "runs", "files"))
    for folder in (out, runs / "points" / "abc", files):
        folder.mkdir(parents=True)
    (out / "pruned-keras.keras").write_text("weights")
    (out / "pruned-keras.quantization.json").write_text("{}")
    (out / "run.json").write_text('{"rows": [{"path": "pruned-keras.keras"}]}')
    (out / "recipe.toml").write_text("")
    (out / "report.html").write_text("an earlier report")
    (out / "pruned-keras.csv").write_text("an earlier table")
    (runs / "sweep.json").write_text("{}")
    (runs / "points" / "abc" / "int8.tflite").write_text("codes")
    (files / "net-int8.tflite").write_text("codes")
    artifact.add_to_manifest(
        files, [artifact.describe(files / "net-int8.tflite", format="int8", stage="net")]
    )
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        *("out/run.json", "out/recipe.toml", "out/manifest.json", "out/pruned-keras.keras"),
        *("out/pruned-keras.quantization.json", "out/.stages/baseline.json", "out/x/../run.json"),
        *("runs/sweep.json", "runs/index.json", "runs/points/abc/int8.tflite", "runs/points/new"),
        *("files/manifest.json", "files/net-int8.tflite", "hard", "soft", "linked/run.json"),
    ],
)
def test_no_output_goes_onto_a_record_or_a_file_of_a_run(name, ran):
    (ran / "hard").hardlink_to(ran / "out" / "run.json")
    (ran / "soft").symlink_to(ran / "out" / "pruned-keras.keras")
    (ran / "linked").symlink_to(ran / "out")
    with pytest.raises(SecateurError, match=r"--json .* would overwrite a (record|file) of"):
        artifact.refuse_records({"--html": None, "--json": ran / name}, ran / "out")


def test_an_earlier_report_and_a_file_elsewhere_may_be_written(ran):
    for name in (
        "out/report.html",
        "out/pruned-keras.csv",
        "out/new.json",
        "recipe.toml",
        "new/run.json",
    ):
        artifact.refuse_records({"--json": ran / name}, ran / "out")


def test_two_outputs_and_an_output_onto_an_input_are_refused(ran):
    with pytest.raises(SecateurError, match="is the file of --csv too"):
        artifact.refuse_inputs({"--csv": ran / "t", "--json": ran / "out" / ".." / "t"}, ())
    model = ran / "out" / "pruned-keras.keras"
    (ran / "link.keras").symlink_to(model)
    for path in (model, ran / "link.keras"):
        with pytest.raises(SecateurError, match="which this command reads"):
            artifact.refuse_inputs({"--html": path}, (None, "digits", model))


def test_a_second_export_leaves_the_first_in_the_manifest_if_its_file_is_unchanged(ran):
    def export(name):
        (ran / "files" / name).write_text("other codes")
        described = artifact.describe(ran / "files" / name, format="int8", stage="net")
        artifact.add_to_manifest(ran / "files", [described])
        record = json.loads((ran / "files" / "manifest.json").read_text())
        return [entry["path"] for entry in record["files"]]

    assert export("other-int8.tflite") == ["net-int8.tflite", "other-int8.tflite"]
    (ran / "files" / "net-int8.tflite").write_text("changed")
    assert export("other-int8.tflite") == ["other-int8.tflite"]
    (ran / "files" / "manifest.json").write_text('{"files": 3}')
    assert export("last-int8.tflite") == ["last-int8.tflite"]
