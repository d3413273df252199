import json
import subprocess

import torch

from diveparse.engine import environment
from diveparse.engine.environment import describe_environment


def test_the_description_is_json_and_names_what_repeats_a_run():
    told = json.loads(json.dumps(describe_environment(seed=5)))
    assert told["seed"] == 5
    assert told["versions"]["torch"] == torch.__version__
    assert told["machine"]["cpu"]
    assert told["machine"]["num_cores"] >= 1
    assert told["command"]


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
    told = describe_environment(0)
    assert (told["commit"], told["uncommitted_changes"]) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("2")
    assert describe_environment(0)["uncommitted_changes"] is True
