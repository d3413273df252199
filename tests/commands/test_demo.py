import subprocess
from pathlib import Path

import pytest

from diveparse.commands.cli import main
from diveparse.commands.demo import ARMS, reading_of, run_side_by_side
from diveparse.configs import HeadKind, flat_options, load_config


@pytest.mark.parametrize("config", ["demo", "rehearsal"])
def test_the_arms_differ_in_nothing_but_the_head(config):
    flat, structured = (
        flat_options(load_config(Path(config), [f"arm={arm}", *override.split()])) for arm, override in ARMS.items()
    )
    assert {name for name in flat if flat[name] != structured[name]} == {"arm", "head.kind"}
    assert (flat["arm"], flat["head.kind"]) == ("flat", HeadKind.FLAT.value)
    assert (structured["arm"], structured["head.kind"]) == ("structured", HeadKind.JOINT.value)


def test_a_step_that_fails_is_named_in_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("data/demo").mkdir(parents=True)
    Path("data/demo/somebodys.txt").touch()
    assert main(["demo"]) == 1
    refusal, line = capfd.readouterr().err.splitlines()
    assert refusal.startswith("error: data/demo holds files but no rendered.json")
    assert line.startswith("error: this step failed: diveparse prepare synthetic --out data/demo --train-clips 1500")


def test_commands_run_side_by_side_and_one_that_fails_ends_the_others(capfd):
    run_side_by_side({"flat": ("train", "--help"), "structured": ("compare", "--help")})
    assert capfd.readouterr().out.count("usage: diveparse ") == 2
    with pytest.raises(subprocess.CalledProcessError):
        run_side_by_side({"flat": ("train", "nothing"), "structured": ("demo", "--help")})
    assert capfd.readouterr().err.startswith("error: nothing: no such config file")


def test_the_last_line_names_both_dives_where_the_clip_was_read_wrongly():
    path = Path("data/demo/rgb/clip.mp4")
    assert reading_of("105B", "105B", path) == "data/demo/rgb/clip.mp4 was read rightly: it shows 105B."
    wrongly = "data/demo/rgb/clip.mp4 was read wrongly: it shows 105B, and the answer is "
    assert reading_of("107B", "105B", path) == f"{wrongly}107B."
    assert reading_of(None, "105B", path) == f"{wrongly}no dive."
