"""A task's requirement by the text of its card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from paced_verl.capability.card import Encoder, read_cards, requirement_of
from paced_verl.errors import PacedError

NAMES = ("code", "maths", "words")
WORDS = ("program", "number", "letter", "and", "the")


def count(texts: Sequence[str]) -> np.ndarray:
    """Texts as shares of known words."""
    found = np.array([[text.split().count(word) for word in WORDS] for text in texts], np.float64)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def cards(size: int, seed: int = 0, planted: bool = True) -> tuple[list[str], np.ndarray]:
    """Cards whose words say what they require, or say nothing."""
    rng = np.random.default_rng(seed)
    r = rng.dirichlet(np.full(3, 0.5), size)
    told = r if planted else rng.permutation(r)
    texts = []
    for shares in told:
        words = [word for word, share in zip(WORDS, shares, strict=False) for _ in range(round(10 * share))]
        texts.append(" ".join([*words, "and", "the"]))
    return texts, r


def test_a_planted_requirement_is_read_off_the_text() -> None:
    texts, r = cards(24)
    found = requirement_of("program program program and the number", texts, r, count)
    assert found.r.sum() == pytest.approx(1)
    assert found.r[0] > 0.6
    assert found.r[1] > found.r[2]
    mean = np.mean([np.abs(r[i] - np.delete(r, i, 0).mean(0)).sum() for i in range(len(r))])
    assert found.error < 0.5 * mean
    assert found.gain.mean == pytest.approx(mean - found.error)
    assert "tells something" in found.verdict


def test_texts_that_say_nothing_are_said_to_say_nothing() -> None:
    texts, r = cards(24, planted=False)
    found = requirement_of(texts[0], texts, r, count)
    assert found.gain.interval[0] < 0
    assert "has not been shown" in found.verdict


def test_a_capability_that_no_card_requires_gets_nothing() -> None:
    texts, r = cards(12)
    r[:, 2] = 0
    r /= r.sum(1, keepdims=True)
    assert requirement_of("number", texts, r, count).r[2] == 0
    r[:] = [0, 1, 0]
    assert requirement_of("number", texts, r, count).r.tolist() == [0, 1, 0]


def test_too_few_cards_are_refused() -> None:
    texts, r = cards(7)
    with pytest.raises(PacedError, match="7 cards"):
        requirement_of("number", texts, r, count)


def test_cards_are_read() -> None:
    texts, r = read_cards([{"text": "sums", "requirement": {"maths": 0.75, "code": 0.25}}], NAMES)
    assert texts == ["sums"]
    assert r.tolist() == [[0.25, 0.75, 0]]


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"text": "sums"}, "card 1 has text: expected text and requirement"),
        ({"text": "sums", "requirement": {"math": 1.0}}, "no capability 'math'. Did you mean 'maths'"),
        ({"text": "sums", "requirement": {"maths": 0.5}}, "add up to 1"),
        ({"text": "sums", "requirement": {"maths": 1.5, "code": -0.5}}, "shares >= 0"),
        ("sums", "a list of cards"),
    ],
)
def test_cards_that_are_none_are_refused(card: object, words: str) -> None:
    with pytest.raises(PacedError, match=words):
        read_cards([card], NAMES)


def test_a_texts_vector_does_not_depend_on_what_it_is_batched_with(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    small = transformers.BertConfig(
        vocab_size=10, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    transformers.BertModel(small).save_pretrained(tmp_path)
    encode = Encoder(tmp_path)
    alone, together = encode(["the letter"]), encode(["the letter", "program number and the letter the number"])
    assert np.linalg.norm(together, axis=1) == pytest.approx([1, 1])
    np.testing.assert_allclose(alone[0], together[0], atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-3
    encode(["the " * 50])
