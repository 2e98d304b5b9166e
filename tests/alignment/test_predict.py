"""A predictor of aligned tokens: planted signs are found, noise is not, and the loss asks it what it was fitted to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from paced_verl.alignment.predict import NAMES, Predictor, aligned, fit
from paced_verl.errors import PacedError

QUESTIONS, EACH = 30, 20


def nodes(effect: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, dot products whose sign follows the reverse KL by so much, and questions."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(QUESTIONS * EACH, len(NAMES)))
    dot = effect * features[:, NAMES.index("reverse_kl")] + rng.logistic(size=len(features))
    return features, dot, np.repeat(np.arange(QUESTIONS), EACH)


def test_what_was_planted_is_found_on_other_questions() -> None:
    found = fit(*nodes(3.0), "t", "reverse_kl")
    assert found.held_out.auroc > 0.9
    assert found.held_out.low > found.position.high
    assert found.position.low < 0.5 < found.position.high
    slope = dict(zip(NAMES, found.slope, strict=True))
    assert slope.pop("reverse_kl") > 5 * max(map(abs, slope.values()))
    assert (found.questions, found.nodes) == (QUESTIONS, QUESTIONS * EACH)


def test_tip_is_judged_as_what_it_is() -> None:
    """By its score of the nodes of a question, as of the tokens of a response: entropy or reverse KL, whichever says.

    With 20 tokens the percentile that cuts entropies is the largest one."""
    features, dot, question = nodes(3.0)
    found = fit(features, dot, question, "t", "reverse_kl")
    entropy, kl = (features[:, NAMES.index(name)] for name in ("student_entropy", "reverse_kl"))
    scores = np.empty(len(dot))
    for q in range(QUESTIONS):
        here = question == q
        h, d = ((x[here] - x[here].min()) / np.ptp(x[here]) for x in (entropy, kl))
        scores[here] = h + d - h * d
    assert found.tip.auroc == pytest.approx(roc_auc_score(dot > 0, scores))
    assert 0.5 < found.tip.low < found.tip.high < found.held_out.low


def test_noise_is_not_found() -> None:
    found = fit(*nodes(0.0), "t", "reverse_kl")
    assert found.held_out.low < 0.5 < found.held_out.high + 0.02


def test_signs_of_a_question_say_nothing_of_others() -> None:
    """Features that only name the question: folds that mix questions would call them perfect."""
    rng = np.random.default_rng(1)
    name = rng.normal(size=QUESTIONS)
    features = np.repeat(name, EACH)[:, None] * np.ones(len(NAMES)) + 1e-6 * rng.normal(size=(600, len(NAMES)))
    dot = np.repeat(np.where(rng.permutation(QUESTIONS) < 15, 1.0, -1.0), EACH)
    assert fit(features, dot, np.repeat(np.arange(QUESTIONS), EACH), "t", "reverse_kl").held_out.auroc < 0.7


def test_the_loss_asks_what_was_fitted(tmp_path: Path) -> None:
    """Tokens with the highest probability by scikit-learn's formula are kept, whatever stands in masked places."""
    found = fit(*nodes(3.0), "t", "reverse_kl")
    found.save(tmp_path / "predictor.json")
    read = Predictor.load(tmp_path / "predictor.json")
    assert read == found
    generator = torch.Generator().manual_seed(0)
    known = {name: torch.rand(2, 6, generator=generator) for name in NAMES[:-1]}
    mask = torch.tensor([[True] * 6, [False, True, True, True, True, False]])
    factor = aligned(read, known, mask, 0.5)
    for row in range(2):
        places = mask[row].nonzero()[:, 0].tolist()
        logits = []
        for order, place in enumerate(places):
            x = np.array([*(known[name][row, place].item() for name in NAMES[:-1]), np.log1p(order)])
            logits.append(((x - np.array(found.mean)) / np.array(found.scale)) @ np.array(found.slope))
        best = {places[i] for i in np.argsort(logits)[-len(places) // 2 :]}
        assert set(factor[row].nonzero()[:, 0].tolist()) == best
        assert factor[row].sum() == mask[row].sum()


def test_what_is_no_predictor_is_named(tmp_path: Path) -> None:
    with pytest.raises(PacedError, match="is no predictor of aligned tokens"):
        Predictor.load(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"teacher": "t"}')
    with pytest.raises(PacedError, match="is no predictor"):
        Predictor.load(tmp_path / "other.json")


@pytest.mark.parametrize(("questions", "hurt"), [(5, 5), (30, 0), (30, 4)])
def test_too_little_to_fit_is_told(questions: int, hurt: int) -> None:
    """Few questions, one sign, or a sign that only four questions have: some folds would not know it."""
    features, dot, question = nodes(1.0)
    some = question < questions
    dot = np.where(question < hurt, dot, np.abs(dot))
    with pytest.raises(PacedError, match=rf"in {hurt} away from it. A predictor needs 10 questions or more, and 5 of"):
        fit(features[some], dot[some], question[some], "t", "reverse_kl")
