import runpy
from pathlib import Path

from diveparse.configs import HeadKind, load_config, options

ROOT = Path(__file__).resolve().parents[2]
ARMS = runpy.run_path(str(ROOT / "tools" / "demo.py"))["ARMS"]


def test_the_arms_of_the_demo_differ_in_nothing_but_the_head():
    flat, structured = (
        options(load_config(ROOT / "configs" / "demo.yaml", [f"arm={arm}", *override.split()]))
        for arm, override in ARMS.items()
    )
    assert {name for name in flat if flat[name] != structured[name]} == {"arm", "head.kind"}
    assert (flat["arm"], flat["head.kind"]) == ("flat", HeadKind.FLAT.value)
    assert (structured["arm"], structured["head.kind"]) == ("structured", HeadKind.JOINT.value)
