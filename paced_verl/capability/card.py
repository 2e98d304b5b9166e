"""What a task requires by the text of its card: a sentence encoder and a head over its vectors (arXiv 2605.11290).

The head learns from cards whose requirement is known, by interventions for instance. It is judged on cards that it has
not seen, beside one that reads nothing and always says the mean: a text tells something only where it is closer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl.capability.simplex import shares_of
from paced_verl.errors import PacedError
from paced_verl.statistics import Estimate, paired

FloatArray = npt.NDArray[np.float64]
Encode = Callable[[Sequence[str]], FloatArray]
FEWEST = 8
"""Cards, at least: five folds of fewer say nothing."""
STRENGTHS = (0.1, 1.0, 10.0, 100.0)
FOLDS = 5


class Encoder:
    """Texts as vectors of unit length: the mean of an encoder's last hidden states over a text's own tokens.

    Args:
        path: A folder, or a name of the hub, with a model and a tokenizer of transformers.
    """

    def __init__(self, path: str | Path):
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModel.from_pretrained(path).eval()

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """float64 (M, width). What is longer than the model reads is cut."""
        import torch

        most = min(self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", 512))
        inputs = self.tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        with torch.no_grad():
            states = self.model(**inputs).last_hidden_state.double()
        own = inputs["attention_mask"][..., None].double()  # padding is no token of the text
        mean = (states * own).sum(1) / own.sum(1)
        return np.asarray(torch.nn.functional.normalize(mean, dim=-1).numpy())


@dataclass(frozen=True)
class Card:
    """What a card says of a task.

    Attributes:
        r: (C,) on the simplex.
        error: Mean L1 distance of the head's requirement to the known one, for cards that it had not seen.
        gain: What that is below the distance of the other cards' mean, paired by card.
    """

    r: FloatArray
    error: float
    gain: Estimate

    @property
    def verdict(self) -> str:
        """In words."""
        low, high = self.gain.interval
        found = (
            f"on cards it had not seen it was {self.error:.2f} from the known requirement, in sums of differences, "
            f"nearer than the mean of the other cards by {self.gain.mean:+.2f} ({low:+.2f} to {high:+.2f})"
        )
        if low > 0:
            return f"The text tells something: {found}."
        return f"That the text tells more than the mean of the known cards has not been shown: {found}. Measure it."


def read_cards(cards: Any, names: Sequence[str]) -> tuple[list[str], FloatArray]:
    """Texts and requirements (M, C) of ``[{text: …, requirement: {name: share}}, …]``.

    Raises:
        PacedError: A card lacks a part, or its requirement is no distribution over these capabilities.
    """
    if not isinstance(cards, Sequence) or not all(isinstance(card, Mapping) for card in cards):
        raise PacedError("expected a list of cards, each with text and requirement")
    texts, known = [], []
    for number, card in enumerate(cards, 1):
        if set(card) != {"text", "requirement"} or not isinstance(card["requirement"], Mapping):
            raise PacedError(f"card {number} has {', '.join(map(str, card))}: expected text and requirement")
        known.append(shares_of(card["requirement"], names, f"card {number}"))
        texts.append(str(card["text"]))
    return texts, np.reshape(known, (len(cards), len(names)))


def requirement_of(text: str, texts: Sequence[str], known: FloatArray, encode: Encode) -> Card:
    """What a card requires.

    Args:
        text: Of the card.
        texts: M cards whose requirement is known.
        known: (M, C) on the simplex.
        encode: Texts → vectors, such as an :class:`Encoder`.

    Raises:
        PacedError: There are too few cards.
    """
    if len(texts) < FEWEST:
        raise PacedError(f"{len(texts)} cards with a known requirement: it takes {FEWEST} or more")
    vectors = encode([*texts, text])
    known_vectors, others = vectors[:-1], ~np.eye(len(texts), dtype=bool)
    guessed = np.array([_by_head(known_vectors[rest], known[rest], known_vectors[i]) for i, rest in enumerate(others)])
    means = np.array([known[rest].mean(0) for rest in others])
    error, of_mean = (np.abs(guess - known).sum(1) for guess in (guessed, means))
    return Card(_by_head(known_vectors, known, vectors[-1]), float(error.mean()), paired(of_mean, error))


def _by_head(vectors: FloatArray, known: FloatArray, vector: FloatArray) -> FloatArray:
    """(C,): softmax regression on the known shares, as strong as five folds want it."""
    folds = np.arange(len(vectors)) % FOLDS

    def loss(strength: float) -> float:
        total = 0.0
        for fold in range(FOLDS):
            train, test = folds != fold, folds == fold
            guess = _softmax(vectors[train], known[train], vectors[test], strength)
            total -= float((known[test] * np.log(np.maximum(guess, 1e-12))).sum())
        return total

    return np.asarray(_softmax(vectors, known, vector[None], min(STRENGTHS, key=loss))[0])


def _softmax(vectors: FloatArray, known: FloatArray, at: FloatArray, strength: float) -> FloatArray:
    """(n, C) for vectors (n, width): each card counts as every capability, by its share."""
    from sklearn.linear_model import LogisticRegression

    used = np.flatnonzero(known.sum(0) > 0)
    found = np.zeros((len(at), known.shape[1]))
    if len(used) == 1:
        found[:, used] = 1
        return found
    shares = known[:, used]
    model = LogisticRegression(C=strength, max_iter=1000)
    model.fit(np.repeat(vectors, len(used), axis=0), np.tile(used, len(vectors)), shares.ravel())
    found[:, used] = model.predict_proba(at)
    return found
