"""The page of runs that are made up: what was planted is what it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from scripts.experiments.capability import contrasts, page, predictions
from scripts.experiments.capability.headroom import R, found
from scripts.experiments.capability.problems import NAMES
from scripts.experiments.capability.programme import INTERVENTIONS, Cell, programme
from scripts.experiments.evidence import stats

BEFORE = np.array([0.9, 0.0, 0.4, 0.3, 0.1, 0.5])
RATE = np.diag([0.1, 0.0, 0.3, 0.2, 0.5, 0.2])
SHIFTS = {"gains": 0.02, "one_hot": -0.1, "by headroom": 0.03}


def made_up(cell: Cell) -> dict[str, Any]:
    """Interventions do what T says; policies end at .1 above the beginning and what they are given, and noise."""
    rng = np.random.default_rng([cell.seed, len(cell.arm), len(cell.phase)])
    if cell.phase == "interventions":
        mix = np.array([INTERVENTIONS[cell.arm].get(name, 0.0) for name in NAMES])
        final = BEFORE + (1 - BEFORE) * (RATE @ np.sqrt(mix))
    else:
        final = BEFORE + 0.1 + SHIFTS.get(cell.arm, 0.0) + (cell.phase == "more probes") * 0.05
    final = final + rng.normal(0, 0.002, len(NAMES))
    curve = np.linspace(BEFORE, final, 5)
    curve[2, 0] -= 0.2 * (cell.arm == "one_hot")
    row = {"before": BEFORE.tolist(), "final": final.tolist(), "accuracy": curve.tolist(), "torch": "2", "seconds": 1.0}
    row |= {"tokens": [10] * len(NAMES), "planned": [R.tolist()] * 4, "probe_tokens": 100}
    if cell.phase == "probes read":
        # At decisions 2, 4, 5, 7, 8: what is read is always off by as much, answers are off now here, now there.
        away = 0.05 * np.array([[1], [1], [-1], [1], [-1]]) * np.ones(len(NAMES))
        row |= {"probe_tokens": 80, "score_errors": {"read": [[0.04] * len(NAMES)] * 5, "answered": away.tolist()}}
    return cell.columns() | row


ROWS = [made_up(cell) for cell in programme()]


@pytest.fixture(scope="module")
def blocks() -> Iterator[dict[str, str]]:
    patch = pytest.MonkeyPatch()
    patch.setattr(stats, "RESAMPLES", 99)
    yield page.blocks(ROWS)
    patch.undo()


def table(text: str) -> dict[str, list[str]]:
    """Cells by the first one of their line."""
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in cells}


def test_differences_are_to_the_static_mix(blocks: dict[str, str]) -> None:
    rows = table(blocks["policies"])
    assert rows["gains"][1].startswith("**+0.02")
    assert rows["one_hot"][1].startswith("**-0.10")
    assert rows["by headroom"][3] == "", "it is not of the family"
    assert float(rows["gains"][3]) < 0.05 < float(rows["uniform"][3])
    assert float(rows["one_hot"][5].rstrip("%")) == pytest.approx(100 / (4 * len(NAMES)), abs=0.05), "one fall of 24"
    assert rows["task_static"][5] == "0.0%"


def test_more_probes_are_beside_few(blocks: dict[str, str]) -> None:
    rows = table(blocks["probes"])
    assert rows["read"][1].startswith("**+0.05")
    assert rows["gains"][1].startswith("**+0.07")
    assert rows["gains"][3].startswith("**+0.05")


def test_probes_that_are_read_are_beside_answers(blocks: dict[str, str]) -> None:
    rows = table(blocks["reading"])
    assert rows["gains"][1].startswith("**+0.02")
    assert abs(float(rows["gains"][3].split()[0].strip("*"))) < 0.005
    assert rows["gains"][4] == "0.80 ×"
    assert table(blocks["probes"])["gains"][4] == "1.00 ×"
    assert table(blocks["errors"])["sort"] == ["0.040", "0.050", "0.000", "0.100"]


def test_the_planted_transfer_is_found() -> None:
    result = found(ROWS)
    np.testing.assert_allclose(result.transfer.mean, RATE, atol=0.1)
    assert np.abs(result.transfer.mean - RATE)[1:, 1:].max() < 0.02
    assert result.headroom.best[NAMES.index("deep")] < R[NAMES.index("deep")]


def test_measures_are_those_they_are_called() -> None:
    row = {"before": [0.0] * 6, "final": [1.0, 0.0, 0.5, 0.5, 0.2, 1.0], "accuracy": [[0.0] * 6, [1.0] * 6]}
    assert contrasts.utility(row) == pytest.approx(0.1 + 0.25 * 0.5 + 0.25 * 0.5 + 0.1 * 0.2 + 0.1)
    assert contrasts.gain(row) == contrasts.utility(row)
    assert contrasts.area(row) == pytest.approx(0.5)
    assert contrasts.lowest(row) == 0.2
    assert contrasts.hurts(row) == 0


def test_holm_is_over_six_contrasts() -> None:
    family = contrasts.registered(ROWS)
    assert [arm for arm, _, _ in family] == list(contrasts.FAMILY)
    raw = [gap.p for _, gap, _ in family]
    assert family[int(np.argmin(raw))][2] == pytest.approx(6 * min(raw))


def test_every_prediction_has_an_outcome(blocks: dict[str, str]) -> None:
    rows = table(blocks["predictions"])
    assert {prediction.name for prediction in predictions.PREDICTIONS} <= set(rows)
    assert all(rows[prediction.name][-1] for prediction in predictions.PREDICTIONS)
