from dataclasses import replace

from diveparse.engine.evidence.readout_table import is_read_out, readout_table


def make_arms(a_run):
    """Two arms of two trainings, of which one is read out: it saw one of its three dives and cannot name another."""
    own = {seed: a_run("own", seed) for seed in (0, 1)}
    other = {
        seed: replace(
            a_run("other", seed),
            model_of=f"runs/ladder/joint/seed-{seed}",
            num_train_clips={"101B": 20, "103B": 0, "203C": 0},
            not_expressible=("203C",),
        )
        for seed in (0, 1)
    }
    return {"own": own, "other": other}


def cells_of(table):
    lines = [line for line in table.splitlines() if line.startswith("| other")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_readout_has_a_row_for_each_kind_of_dive(a_run):
    arms = make_arms(a_run)
    rows = cells_of(readout_table(arms))
    kinds = ["trained", "not trained, can be named", "cannot be named", "all"]
    assert [row[1] for row in rows] == kinds
    assert [(row[2], row[3]) for row in rows] == [("1", "8"), ("1", "8"), ("1", "8"), ("3", "24")]
    runs = arms["other"].values()
    for row, number in zip(rows, ("101B", "103B", "203C"), strict=False):
        right = [run.correct[run.predictions["true_number"] == number].mean() for run in runs]
        assert row[4] == f"{100 * sum(right) / 2:.1f}"


def test_an_arm_that_is_trained_where_it_is_tested_is_left_out(a_run):
    arms = make_arms(a_run)
    assert "| own" not in readout_table(arms)
    assert not any(map(is_read_out, arms["own"].values()))


def test_the_dives_that_a_model_cannot_name_are_listed(a_run):
    assert "- other cannot name: 203C\n" in readout_table(make_arms(a_run))


def test_a_kind_without_clips_has_no_accuracy(a_run):
    arms = {"other": {0: replace(a_run("other"), model_of="runs/ladder/joint/seed-0")}}
    assert cells_of(readout_table(arms))[2][1:] == ["cannot be named", "0", "0", "-"]
