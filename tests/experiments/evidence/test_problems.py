"""The tasks: solutions by plain Python, and a verifier that takes what is right and nothing else."""

from __future__ import annotations

import pytest
import torch

from scripts.experiments.evidence.problems import (
    ASK,
    BLANK,
    COPY,
    END,
    FAMILIES,
    HOLE,
    PROMPT,
    RESPONSE,
    draw_lengths,
    final,
    make,
    mask,
    right,
    with_holes,
)


def problems(family: str, n: int = 200):
    generator = torch.Generator().manual_seed(0)
    return make(family, draw_lengths(n, range(3, 9), generator), generator)


def by_hand(family: str, symbols: list[int]) -> list[int]:
    if family == "reverse":
        return symbols[::-1]
    if family == "copy":
        return symbols
    totals, total = [], symbols[0]
    for digit in symbols[1:]:
        total = (total + digit) % 10
        totals.append(total)
    return totals


@pytest.mark.parametrize("family", FAMILIES)
def test_a_solution_is_what_plain_python_says(family: str) -> None:
    made = problems(family)
    assert set(made.lengths.tolist()) == set(range(3, 9))
    for prompt, solution, length in zip(
        made.prompts.tolist(), made.solutions.tolist(), made.lengths.tolist(), strict=True
    ):
        answer = [*by_hand(family, prompt[:length]), END]
        assert solution == answer + [BLANK] * (RESPONSE - len(answer))
        assert prompt[length:] == [BLANK] * (PROMPT - 1 - length) + [COPY if family == "copy" else ASK]


@pytest.mark.parametrize("family", FAMILIES)
def test_solutions_are_right_and_other_answers_are_not(family: str) -> None:
    made = problems(family)
    assert right(family, made.solutions, made.solutions).all()
    after = made.solutions.where(mask(made.solutions) == 1, 3)
    assert right(family, after, made.solutions).all(), "what follows the end does not matter"
    wrong = made.solutions.clone()
    place = mask(wrong).sum(1).long() - 2  # the symbol before the end
    wrong[torch.arange(len(wrong)), place] = (wrong[torch.arange(len(wrong)), place] + 1) % 10
    assert not right(family, wrong, made.solutions).any()
    endless = made.solutions.where(made.solutions != END, 0)
    assert not right(family, endless, made.solutions).any()


def test_there_are_several_ways_to_a_sum_and_one_to_a_word() -> None:
    for family, allowed in (("sums", True), ("reverse", False)):
        made = problems(family)
        long = made[made.lengths == 6]
        other = long.solutions.clone()
        other[:, 0] = (other[:, 0] + 1) % 10
        assert bool(right(family, other, long.solutions).all()) == allowed
    assert final(torch.tensor([[END, 1, 1], [4, END, 2], [1, 2, 3]])).tolist() == [-1, 4, -1]


def test_holes_hide_half_of_what_was_there() -> None:
    made = problems("reverse")
    holed = with_holes(made, torch.Generator().manual_seed(1))
    hidden = (holed.prompts == HOLE).sum(1)
    assert torch.equal(hidden, (made.lengths + 1) // 2)
    assert torch.equal(holed.prompts.where(holed.prompts == HOLE, made.prompts), holed.prompts)
