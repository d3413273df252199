import json
import subprocess

import torch

from diveparse.engine import environment
from diveparse.engine.environment import describe_environment


def test_the_description_is_json_and_names_what_repeats_a_run():
    described = json.loads(json.dumps(describe_environment(seed=5)))
    assert described["seed"] == 5
    assert described["versions"]["torch"] == torch.__version__
    assert {"cpu", "num_cores"} <= set(described["machine"])
    assert described["command"]


def test_the_commit_and_uncommitted_changes_are_gits(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    monkeypatch.setattr(environment, "REPOSITORY", tmp_path)
    assert describe_environment(0)["commit"] is None
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    described = describe_environment(0)
    assert (described["commit"], described["uncommitted_changes"]) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("2")
    assert describe_environment(0)["uncommitted_changes"] is True
