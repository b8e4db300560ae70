"""Records on disk: sound, or refused with the reason, before anything is made of them."""

import io
import zipfile

import numpy as np
import pytest
from tests.reporting.records_example import example_run

from secateur.errors import SecateurError
from secateur.records import POINT, RUN, STAGE, mismatch, of_file, read_json, read_npz, read_toml

DEEP = {"json": "[" * 100_000, "toml": "a." * 100_000 + "b = 1"}


@pytest.mark.parametrize(("kind", "read"), [("json", read_json), ("toml", read_toml)])
def test_text_is_read_within_limits(tmp_path, monkeypatch, kind, read):
    path = tmp_path / f"x.{kind}"
    for content, why in (
        (DEEP[kind].encode(), "nested more than 50 deep"),
        (b"\xff\xfe", "not a text file in UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=why):
            read(path)
    path.write_text(" " * 100)
    monkeypatch.setenv("SECATEUR_MAX_MEMORY", "3kB")
    with pytest.raises(ValueError, match=r"100 bytes, more than 94 that fit .*--max-memory"):
        read(path)
    with pytest.raises(ValueError, match="not a regular file"):
        read(tmp_path)


def test_numbers_that_nothing_can_hold(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": NaN, "b": 1e999, "c": 3}')
    assert read_json(path) == {"a": None, "b": None, "c": 3}
    path.write_text('{"a": ' + "9" * 30 + "}")
    with pytest.raises(ValueError, match="a whole number of 30 digits"):
        read_json(path)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"seed": True}, "'seed' is True, expected a number"),
        ({"seed": None}, "'seed' is missing"),
        ({"rows": [{"row": "a", "stage": "b", "format": ["c"]}]}, "'rows[0].format' is ['c'], expected text"),
        ({"data": {"sizes": {"train": "x"}}}, "'data.sizes.train' is 'x', expected a number"),
        ({"stages": [{"name": "a", "weights": [{"histogram": []}]}]},
         "'stages[0].weights[0].histogram' is [], expected a table"),
        ({"stages": [{"name": "a", "sparsity_curve": [[1, 0.5], [2]]}]},
         "'stages[0].sparsity_curve[1]' is [2], expected a list of 2"),
        ({"stages": [{"name": "a", "history": {"loss": [None, 0.5]}, "more": object}]}, None),
    ],
)  # fmt: skip
def test_the_first_key_of_another_type_is_named(change, wrong):
    assert mismatch(example_run() | change, RUN) == wrong


def test_what_is_no_table_is_no_record():
    for schema in (RUN, POINT, STAGE):
        assert mismatch([], schema) == "'the record' is [], expected a table"


def test_an_archive_that_declares_more_than_it_holds_is_refused(tmp_path, monkeypatch):
    path, stream = tmp_path / "bad.npz", io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (6 * 2**28,)}
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", stream.getvalue() + bytes(100))
    with pytest.raises(ValueError, match=r"x\.npy declares shape \(1610612736,\), 6,442,450,944"):
        read_npz(path)
    np.savez_compressed(path, x=np.zeros((3 * 2**24,), np.uint8))
    with pytest.raises(ValueError, match=r"50,331,648 bytes declared in a file of 4\d,\d{3}"):
        read_npz(path)
    assert read_npz(path, ["y"]) == {}
    with monkeypatch.context() as patch:
        patch.setenv("SECATEUR_MAX_MEMORY", "60MB")
        assert read_npz(path)["x"].nbytes == 3 * 2**24
    monkeypatch.setenv("SECATEUR_MAX_MEMORY", "1kB")
    np.savez(path, x=np.zeros((300, 4), np.uint8))
    with pytest.raises(ValueError, match=r"at most 1,000 are read; --max-memory"):
        read_npz(path)


def test_an_error_about_what_a_file_holds_names_it(tmp_path):
    with pytest.raises(SecateurError, match=r"^a\.npz: y is text$"), of_file("a.npz"):
        raise SecateurError("y is text")
