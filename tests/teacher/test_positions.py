"""Where a teacher's log-probabilities lie in the student's sequence, and which ids the student knows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paced_verl.teacher.positions import at_student_positions, in_vocabulary, response_positions


@given(st.integers(1, 12), st.integers(1, 12))
def test_the_positions_of_a_response_are_those_before_its_tokens(prompt: int, response: int) -> None:
    tokens = list(range(100, 100 + prompt + response))
    following = [*tokens[1:], None]  # what position i predicts
    assert following[response_positions(prompt + response, response)] == tokens[prompt:]


def test_a_teachers_scores_lie_where_the_student_predicts_the_same_token() -> None:
    """The teacher's prompt is longer: rows move to the student's positions, and the rest is a distribution."""
    ids = torch.tensor([[5, 6], [7, 8], [9, 10]], dtype=torch.int32)
    log_probs = torch.tensor([[-0.1, -3.0], [-0.2, -2.0], [-0.3, -1.5]])
    placed, values = at_student_positions((ids, log_probs), length=7, response_length=3, topk=2)
    assert placed.dtype == torch.int32
    assert placed[3:6].equal(ids)
    assert values[3:6].equal(log_probs)
    for position in (0, 1, 2, 6):
        assert placed[position].tolist() == [0, 1]
        assert values[position].exp().sum().item() == pytest.approx(1)


def test_a_teacher_that_was_not_asked_leaves_a_distribution_everywhere() -> None:
    ids, log_probs = at_student_positions(None, length=4, response_length=2, topk=8)
    assert ids.shape == log_probs.shape == (4, 8)
    assert all(len(set(row)) == 8 for row in ids.tolist())
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(4))


@given(st.data())
def test_ids_beyond_the_students_vocabulary_lose_their_probability_and_double_no_token(data: st.DataObject) -> None:
    size, k = 12, 5
    rows = data.draw(st.lists(st.lists(st.integers(0, 19), min_size=k, max_size=k, unique=True), min_size=1))
    ids, log_probs = torch.tensor(rows, dtype=torch.int32), torch.full((len(rows), k), math.log(1 / k))
    known = ids < size
    fixed, values = in_vocabulary(ids, log_probs, size)
    assert fixed[known].equal(ids[known])
    assert values[known].equal(log_probs[known])
    assert (values[~known] == -math.inf).all()
    assert (fixed < size).all()
    assert all(len(set(row)) == k for row in fixed.tolist()), "no token twice"
