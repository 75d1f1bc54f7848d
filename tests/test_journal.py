"""The journal of a folder of results, cut anywhere, damaged, and under other settings."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.journal import NAME, Journal

SETTINGS = {"weights": "run", "classes": ("cat", "dog")}
PICTURES = {"/é.jpg": [], "/b.jpg": [{"score": 0.5}], "/c.jpg": [{"score": 1.0}, {"score": 0.25}]}


def fill(folder):
    with Journal(folder, SETTINGS, overwrite=False) as journal:
        for path, rows in PICTURES.items():
            journal.add({"path": path, "id": len(rows)}, rows)
    return (folder / NAME).read_bytes()


@given(st.data())
def test_a_journal_cut_anywhere_keeps_its_whole_lines(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        content = fill(folder)
        end = data.draw(st.integers(content.index(b"\n") + 1, len(content)))
        (folder / NAME).write_bytes(content[:end])
        whole = content[:end].count(b"\n") - 1
        with Journal(folder, SETTINGS, overwrite=False) as journal:
            assert [head["path"] for head in journal.heads()] == list(PICTURES)[:whole]
            assert len(journal) == whole and journal.head("/gone.jpg") is None
            for path, rows in list(PICTURES.items())[whole:]:
                journal.add({"path": path, "id": len(rows)}, rows)
            found = [(head, rows) for head, rows in journal.rows()]
        assert found == [({"path": p, "id": len(rows)}, rows) for p, rows in PICTURES.items()]
        assert (folder / NAME).read_bytes() == content


def test_the_last_line_on_a_picture_counts(tmp_path):
    fill(tmp_path / "out")
    with Journal(tmp_path / "out", SETTINGS, overwrite=False) as journal:
        journal.add({"path": "/b.jpg", "id": 9}, [])
    with Journal(tmp_path / "out", SETTINGS, overwrite=False) as journal:
        assert len(journal) == 3 and journal.head("/b.jpg")["id"] == 9
        assert [rows for head, rows in journal.rows() if head["id"] == 9] == [[]]


@pytest.mark.parametrize("line", [b"[1]\n", b'{"rows": []}\n', b"\xff\n", b"7\n"])
def test_a_damaged_line_is_named(tmp_path, line):
    content = fill(tmp_path / "out")
    (tmp_path / "out" / NAME).write_bytes(content + line + content.splitlines(True)[1])
    with pytest.raises(UserError, match="line 5: damaged"):
        Journal(tmp_path / "out", SETTINGS, overwrite=False)


def test_other_settings_and_other_folders_are_refused(tmp_path):
    content = fill(tmp_path / "out")
    with pytest.raises(UserError, match="weights = 'run', now it is 'other'"):
        Journal(tmp_path / "out", {**SETTINGS, "weights": "other"}, overwrite=False)
    assert (tmp_path / "out" / NAME).read_bytes() == content
    with pytest.raises(UserError, match="not empty"):
        Journal(tmp_path, SETTINGS, overwrite=False)
    with Journal(tmp_path / "out", {"weights": "other"}, overwrite=True) as journal:
        assert len(journal) == 0
