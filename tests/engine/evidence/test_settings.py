from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from statsmodels.regression.mixed_linear_model import MixedLM

from diveparse.configs import ClipConfig, HeadConfig, HeadKind
from diveparse.engine.evidence.comparison import compare_groups
from diveparse.engine.evidence.settings import over_settings
from diveparse.engine.evidence.trainings import ALPHA


def some_differences(tau: float = 0.0, nu: float = 0.0, shape: tuple[int, ...] = (5, 12), seed: int = 0) -> np.ndarray:
    """(…, num_settings, num_seeds), around 0. tau, nu: standard deviations of settings and of seeds, beside 1.7."""
    rng = np.random.default_rng(seed)
    of_setting, of_seed = rng.normal(size=(*shape[:-1], 1)), rng.normal(size=(*shape[:-2], 1, shape[-1]))
    return 1.7 * rng.normal(size=shape) + tau * of_setting + nu * of_seed


@pytest.mark.filterwarnings("ignore::UserWarning")  # MixedLM warns where a variance is estimated as 0
@pytest.mark.parametrize("tau", [0.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_that_of_mixed_models_with_settings_and_with_seeds(tau: float, seed: int) -> None:
    differences = some_differences(tau, nu=1.5, seed=seed)
    table = pd.DataFrame({"difference": differences.ravel()})
    setting, training = np.indices(differences.shape)
    variances = []
    for groups in (setting, training):
        fitted = MixedLM.from_formula("difference ~ 1", table, groups=groups.ravel()).fit(method="powell")
        variances.append(float(fitted.bse["Intercept"]) ** 2)
        assert fitted.params["Intercept"] == pytest.approx(differences.mean())
    alone = differences.var(ddof=1) / differences.size
    found = over_settings(differences, 0.09, 235)
    assert found.value == pytest.approx(differences.mean())
    assert found.standard_error**2 == pytest.approx(sum(variances) - alone + 0.09, rel=1e-4)


@pytest.mark.parametrize(("tau", "nu"), [(0.0, 0.0), (0.5, 0.5), (0.0, 1.0)])
@pytest.mark.parametrize("shape", [(4, 5), (5, 12), (8, 20)], ids=str)
def test_equal_arms_are_called_different_over_settings_in_one_percent_of_cases_at_most(shape, tau, nu):
    num_draws, rng = 20_000, np.random.default_rng(1)
    differences = some_differences(tau, nu, (num_draws, *shape)) + 0.3 * rng.normal(size=(num_draws, 1, 1))
    found = over_settings(differences, 0.09 * rng.chisquare(234, num_draws) / 234, 235)
    assert np.mean(found.p_different < ALPHA) <= ALPHA + 4 * np.sqrt(ALPHA / num_draws)


def test_fewer_than_five_seeds_decide_nothing_over_any_number_of_settings():
    found = over_settings(some_differences(shape=(12, 4)) + 50, 0.09, 235)
    assert np.isnan(found.p_different)
    assert found.limit == "these weights only"


def arms_in_settings(a_run, num_seeds=5):
    """Flat and joint with 8 and with 16 frames."""
    kinds = {"flat": HeadKind.FLAT, "joint": HeadKind.JOINT}
    return {
        f"{arm}-{frames}": {
            seed: a_run(
                f"{arm}-{frames}",
                seed,
                accuracy=0.3 if arm == "flat" else 0.7,
                trained={"head": HeadConfig(kind=kind), "clip": ClipConfig(num_frames=frames)},
            )
            for seed in range(num_seeds)
        }
        for arm, kind in kinds.items()
        for frames in (8, 16)
    }


def test_pairs_that_differ_in_the_same_options_are_pooled(a_run):
    pairs = [("flat-8", "joint-8"), ("flat-16", "joint-16"), ("flat-8", "flat-16")]
    report = compare_groups(arms_in_settings(a_run), pairs)
    pools = {pool.judged.quantity: pool for pool in report.pools}
    assert list(pools) == ["top-1", "NLL"]
    pool = pools["top-1"]
    assert pool.options == "head.kind (joint, flat)"
    assert [pair.name for pair in pool.pairs] == ["joint-8 - flat-8", "joint-16 - flat-16"]
    by_setting = np.stack([pair.effects[0].gains.by_training for pair in pool.pairs])
    source_variance = pool.gains.source_variance
    assert vars(pool.judged.difference) == vars(over_settings(by_setting, source_variance, 4))
    assert pool.gains.by_training == pytest.approx(by_setting.mean(axis=0))
    assert (pool.num_higher, pool.num_trainings) == ((by_setting > 0).sum(), 10)


def test_settings_are_pooled_over_the_seeds_that_they_share(a_run):
    arms = arms_in_settings(a_run, num_seeds=3)
    del arms["joint-8"][1]
    pairs = [("flat-8", "joint-8"), ("flat-16", "joint-16")]
    assert {pool.seeds for pool in compare_groups(arms, pairs).pools} == {(0, 2)}
    del arms["joint-16"][0]
    assert compare_groups(arms, pairs).pools == []
