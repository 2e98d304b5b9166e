"""The page of the study: every number on it is the table's, and what it concludes is what the table says."""

from __future__ import annotations

import re

import pyarrow.parquet as pq
import pytest

from scripts.experiments.page import markers, put
from scripts.experiments.predicted.__main__ import MODULE, PAGE, TABLE
from scripts.experiments.predicted.page import BROKEN, FEATURES, QUARTER, blocks, over_seeds
from scripts.experiments.predicted.regimes import REGIMES, RULE, SEEDS


@pytest.fixture(scope="module")
def table():
    return pq.read_table(TABLE).to_pylist()


def test_the_page_shows_what_the_table_says(table) -> None:
    page = PAGE.read_text()
    assert put(page, blocks(table), MODULE) == page


def test_no_result_stands_outside_of_what_is_written_from_the_table() -> None:
    by_hand = markers(MODULE).sub("", PAGE.read_text())
    assert not re.findall(r"\d*\.\d+", by_hand)
    assert set(re.findall(r"\d+ %", by_hand)) == {f"{RULE:.0%}".replace("%", " %")}


def test_the_table_has_every_regime_with_every_seed(table) -> None:
    assert {row["regime"] for row in table} == set(REGIMES)
    assert {(row["regime"], row["seed"]) for row in table} == {(name, seed) for name in REGIMES for seed in SEEDS}


def test_what_the_page_concludes(table) -> None:
    for way in QUARTER:
        for known in FEATURES[1:]:
            found = over_seeds(table, "relative", way, "logistic", known)
            assert [name for name in REGIMES if found[name].mean < RULE] == [BROKEN]
            assert found[BROKEN].interval[1] < RULE, "no accident of the seeds"
    rows = [row for row in table if row["price"] == 1 / 4 and not row["way"].startswith("never")]
    for way in {(row["way"], row["model"], row["features"]) for row in rows}:
        assert over_seeds(table, "relative", *way)[BROKEN].mean < RULE
    alike = over_seeds(table, "relative", "all alike")
    assert all(set(REGIMES[name].prompts) == {"chain_sum"} for name in REGIMES if alike[name].mean >= RULE)


def test_a_page_with_another_number_or_without_a_block_is_noticed(table) -> None:
    page, written = PAGE.read_text(), blocks(table)
    wrong = page.replace("9 of 10 test cases", "8 of 10 test cases")
    assert wrong != page
    assert put(wrong, written, MODULE) == page
    with pytest.raises(ValueError, match="answer"):
        put(page.replace("<!-- answer:", "<!-- reply:"), written, MODULE)
