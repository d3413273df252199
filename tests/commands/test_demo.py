from pathlib import Path

import pytest

from diveparse.commands.demo import ARMS
from diveparse.configs import HeadKind, load_config, options


@pytest.mark.parametrize("config", ["demo", "rehearsal"])
def test_the_arms_differ_in_nothing_but_the_head(config):
    flat, structured = (
        options(load_config(Path(config), [f"arm={arm}", *override.split()])) for arm, override in ARMS.items()
    )
    assert {name for name in flat if flat[name] != structured[name]} == {"arm", "head.kind"}
    assert (flat["arm"], flat["head.kind"]) == ("flat", HeadKind.FLAT.value)
    assert (structured["arm"], structured["head.kind"]) == ("structured", HeadKind.JOINT.value)
