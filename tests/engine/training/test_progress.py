import math

import pytest

from diveparse.engine.training.progress import Progress, Totals


def test_totals_weigh_each_clip_the_same():
    totals = Totals()
    totals.add_clips(3, 1, 2, {"loss": 1.0})
    totals.add_clips(1, 1, 0, {"loss": 5.0})
    totals.add(Totals(wait_s=1.0, total_s=4.0))
    for norm in (0.5, 2.0, 1.0, 4.0):
        totals.add_gradient(norm, limit=1.0)
    assert totals.scalars() == {
        "loss": 2.0,
        "accuracy": 0.5,
        "damaged_clips": 2,
        "clips_per_second": 1.0,
        "data_wait_share": 0.25,
        "clipped_share": 0.5,
        "median_grad_norm": 1.5,
    }


def test_nothing_is_clipped_without_a_limit():
    totals = Totals()
    totals.add_gradient(1e9, limit=math.inf)
    assert (totals.clipped_share, totals.median_grad_norm) == (0.0, 1e9)


def test_each_epoch_leaves_what_is_reported_of_its_gradients():
    progress = Progress()
    for norms in ([0.5, 3.0, 2.0], [0.1, 0.2, 0.3]):
        for norm in norms:
            progress.epoch.add_gradient(norm, limit=1.0)
        progress.end_epoch()
    assert progress.clipped_share == pytest.approx([2 / 3, 0.0])
    assert progress.median_grad_norm == [2.0, 0.2]
    assert progress.epoch == Totals()


def test_progress_comes_back_from_its_state():
    progress = Progress(num_updates=3, best_top1=0.5, best_nll=1.5)
    progress.window.add_clips(2, 1, 0, {"loss": 0.25})
    progress.epoch.add(Totals(wait_s=0.5, total_s=1.0))
    progress.epoch.add_gradient(2.0, limit=1.0)
    progress.end_epoch()
    assert Progress.from_state_dict(progress.state_dict()) == progress


@pytest.mark.parametrize(
    ("top1", "nll", "better"), [(0.6, 9.0, True), (0.5, 0.9, True), (0.5, 1.0, False), (0.4, 0.1, False)]
)
def test_the_best_model_has_the_higher_top1_and_among_equals_the_lower_nll(top1, nll, better):
    progress = Progress(best_top1=0.5, best_nll=1.0)
    assert progress.is_best({"top1": top1, "nll": nll}) is better
    assert (progress.best_top1, progress.best_nll) == ((top1, nll) if better else (0.5, 1.0))


def test_the_first_model_is_the_best_so_far():
    assert Progress().is_best({"top1": 0.0, "nll": 99.0})
