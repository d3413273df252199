import json

import pytest

from diveparse.datasets.storage.atomic import write_json, written_atomically


def test_the_new_content_appears_only_when_the_block_is_done(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with written_atomically(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with written_atomically(path) as temporary:
            temporary.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_behind_is_written_over(tmp_path):
    (tmp_path / "file.json.partial").write_text("half of an older, much longer file")
    write_json(tmp_path / "file.json", {"a": 1})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": 1}


def test_json_without_a_spelling_for_a_number_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "file.json", {"nll": float("nan")})
    assert list(tmp_path.iterdir()) == []
