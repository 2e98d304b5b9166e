"""What a checkpoint keeps on the driver comes back as it was, and nothing of another data set does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paced_verl.config import PacedConfig
from paced_verl.pacing.kernel import fit_exponents, fit_prior
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.run.state import PacedState
from paced_verl.targets.store import Target

SIZE = 8
SUCCESSES, SAMPLES = np.array([0, 1, 2, 3, 5, 6, 7, 8]), np.full(SIZE, 8)


def config(**block: Any) -> PacedConfig:
    stages = [{"until": 1.0, "divergence": "forward_kl", "responses": "teacher"}]
    return PacedConfig.parse({"schedule": stages} | block)


def state(fingerprint: str = "mine", **block: Any) -> PacedState:
    paced = config(**block)
    return PacedState(paced, paced.build_schedule(10), prompts=SIZE, epoch_size=SIZE, fingerprint=fingerprint)


def estimated(state: PacedState, step: int) -> PacedState:
    table = PassRateTable(SIZE, fingerprint=state.rates.table.fingerprint)
    table.observe(np.arange(SIZE), SUCCESSES, SAMPLES, step)
    state.rates.use(table, step)
    return state


def test_a_saved_state_goes_on(tmp_path: Path) -> None:
    first = estimated(state(), step=5)
    first.targets.add(3, Target((1, 2), "4"))
    first.save(tmp_path, step=1)
    second = state()
    second.load(tmp_path)
    assert second.rates.last_refresh == 5
    assert second.targets[3] == Target((1, 2), "4")
    np.testing.assert_array_equal(second.rates.table.rates(), first.rates.table.rates())
    np.testing.assert_array_equal(second.rates.sampler.weights(), first.rates.sampler.weights())


def test_a_table_of_other_prompts_is_refused_wherever_it_comes_from(tmp_path: Path) -> None:
    estimated(state(), step=1).save(tmp_path, step=1)
    file = str(tmp_path / "pass_rates.parquet")
    message = "expected pass rates of data set other, found those of mine"
    with pytest.raises(ValueError, match=message):
        state("other").load(tmp_path)
    with pytest.raises(ValueError, match=message):
        state("other", pass_rate={"file": file})
    np.testing.assert_array_equal(state("mine", pass_rate={"file": file}).rates.table.successes, SUCCESSES)


def test_what_is_left_to_the_data_is_fitted_to_each_estimate() -> None:
    fitted = estimated(state(weight={"fit": "moments", "estimate": "posterior"}), step=1).rates.kernel
    assert (fitted.alpha, fitted.beta) == fit_exponents(SUCCESSES, SAMPLES)
    assert fitted.prior == fit_prior(SUCCESSES, SAMPLES)


def test_exponents_that_cannot_be_fitted_later_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    run = estimated(state(weight={"fit": "moments", "estimate": "posterior"}), step=1)
    before = run.rates.kernel
    same = PassRateTable(SIZE)
    same.observe(np.arange(SIZE), SAMPLES, SAMPLES, step=9)
    run.rates.use(same, step=9)
    assert (run.rates.kernel.alpha, run.rates.kernel.beta) == (before.alpha, before.beta)
    assert "keeping" in capsys.readouterr().out


def test_what_was_fitted_is_restored_and_nothing_else(tmp_path: Path) -> None:
    estimated(state(weight={"fit": "moments", "estimate": "posterior"}), step=1).save(tmp_path, step=1)
    restored = state(weight={"fit": "moments", "estimate": "posterior", "beta": 3.0})
    restored.load(tmp_path)
    assert (restored.rates.kernel.alpha, restored.rates.kernel.beta) == fit_exponents(SUCCESSES, SAMPLES)
    assert restored.rates.kernel.prior == fit_prior(SUCCESSES, SAMPLES)
    estimated(state(), step=1).save(tmp_path, step=1)
    as_written = state(weight={"alpha": 2.0, "beta": 3.0})
    as_written.load(tmp_path)
    assert (as_written.rates.kernel.alpha, as_written.rates.kernel.beta) == (2.0, 3.0)


def test_a_table_from_a_file_forgets_as_this_run_says(tmp_path: Path) -> None:
    estimated(state(pass_rate={"decay": 1.0}), step=1).save(tmp_path, step=1)
    run = state(pass_rate={"decay": 0.5, "file": str(tmp_path / "pass_rates.parquet")})
    run.rates.table.observe([2], [4], [4], step=2)
    assert (run.rates.table.successes[2], run.rates.table.samples[2]) == (2 / 2 + 4, 8 / 2 + 4)
