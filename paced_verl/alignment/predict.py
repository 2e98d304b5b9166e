"""Which tokens' loss points towards success, by what a training step knows of them anyway: without any rollout.

A logistic regression from the student's entropy, both KLs, the mass outside of the teacher's top-k and the position in
the response to the sign of ⟨g, d⟩, fitted to a measurement and judged on questions that it has not seen. The bars are
the position alone, which is known to carry much of it, and TIP, which needs no fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from paced_verl.alignment.nodes import FEATURES
from paced_verl.atomic import replacing
from paced_verl.divergence.selection import selection_factor, tip_scores
from paced_verl.errors import PacedError

FloatArray = npt.NDArray[np.float64]
POSITION = "log_position"
NAMES = (*FEATURES, POSITION)
FOLDS, RESAMPLES = 5, 1000


@dataclass(frozen=True)
class Score:
    """Area under the ROC curve on questions that were not fitted to, with a 95 % interval over them."""

    auroc: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.auroc:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Predictor:
    """Says how likely the loss of a token points towards success.

    Attributes:
        teacher, divergence: Whose loss it was fitted to.
        mean, scale, slope: By feature, in the order of ``NAMES``.
        intercept: Of the logit.
        held_out: How well it tells tokens apart on other questions.
        position: The same of the position alone.
        tip: The same of TIP's score among the nodes of a question.
        questions, nodes: What it was fitted to.
    """

    teacher: str
    divergence: str
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    slope: tuple[float, ...]
    intercept: float
    held_out: Score
    position: Score
    tip: Score
    questions: int
    nodes: int

    def logit(self, known: Mapping[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """(B, T) of tokens that count, (B, T) bool, by what a training step knows of them."""
        position = (mask.cumsum(1) - 1).clamp_min(0).log1p()
        features = torch.stack([*(known[name].float() for name in FEATURES), position.float()], dim=-1)
        mean, scale, slope = (features.new_tensor(values) for values in (self.mean, self.scale, self.slope))
        return ((features - mean) / scale) @ slope + self.intercept

    def save(self, file: Path) -> None:
        """As JSON."""
        with replacing(file) as unfinished:
            unfinished.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, file: Path) -> Predictor:
        """One that was saved.

        Raises:
            PacedError: There is no such file, or it is none of these.
        """
        try:
            values: dict[str, Any] = json.loads(file.read_text())
            scores = {name: Score(**values.pop(name)) for name in ("held_out", "position", "tip")}
            lists = {name: tuple(map(float, values.pop(name))) for name in ("mean", "scale", "slope")}
            whole: dict[str, Any] = values | scores | lists
            found = cls(**whole)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise PacedError(
                f"paced.tokens.file={file} is no predictor of aligned tokens ({error}). "
                "`paced-verl align fit` makes one from a measurement."
            ) from None
        if {len(found.mean), len(found.scale), len(found.slope)} != {len(NAMES)}:
            raise PacedError(f"paced.tokens.file={file}: expected {len(NAMES)} features, {', '.join(NAMES)}")
        return found


def aligned(predictor: Predictor, known: Mapping[str, torch.Tensor], mask: torch.Tensor, keep: float) -> torch.Tensor:
    """The share of each response's tokens that most likely points towards success; as a registered token weight."""
    return selection_factor(predictor.logit(known, mask), mask, keep)


def fit_to(folder: Path, teacher: str | None, divergence: str | None, seed: int) -> Predictor:
    """Fit to the scores that a measurement has left in a folder.

    Raises:
        PacedError: There are none, or none of that teacher and divergence.
    """
    file = folder / "scores.parquet"
    if not file.is_file():
        raise PacedError(f"{file}: there is no such file; `paced-verl align --out {folder}` makes it")
    table = pq.read_table(file)
    if not {*FEATURES} <= {*table.column_names}:
        raise PacedError(
            f"{file} is of another version: it does not say what a training step would know. Measure again."
        )
    rows = [row for row in table.to_pylist() if row[FEATURES[0]] is not None]
    there = sorted({(row["teacher"], row["divergence"]) for row in rows})
    wanted = next((one for one in there if teacher in (None, one[0]) and divergence in (None, one[1])), None)
    if wanted is None:
        names = "; ".join(f"{name}, {loss}" for name, loss in there)
        raise PacedError(f"{file} has no scores of teacher {teacher} and divergence {divergence}; it has {names}")
    rows = [row for row in rows if (row["teacher"], row["divergence"]) == wanted]
    features = np.array([[*(row[name] for name in FEATURES), np.log1p(row["position"])] for row in rows])
    dot, question = (np.array([row[name] for row in rows]) for name in ("dot", "question"))
    return fit(features, dot, question, *wanted, seed)


def fit(
    features: FloatArray, dot: FloatArray, question: npt.NDArray[np.int64], teacher: str, divergence: str, seed: int = 0
) -> Predictor:
    """Fit and judge.

    Args:
        features: (U, F) in the order of ``NAMES``.
        dot: (U,) ⟨ĝ, d⟩; its sign is what is predicted.
        question: (U,) which question a node is of.
        teacher, divergence: Whose loss.
        seed: Of folds and intervals.

    Raises:
        PacedError: There are too few questions, or too few with one of the signs.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    some = dot != 0
    x, y, groups = features[some], dot[some] > 0, question[some]
    count, helped, hurt = (len(np.unique(part)) for part in (groups, groups[y], groups[~y]))
    if count < 2 * FOLDS or min(helped, hurt) < FOLDS:
        raise PacedError(
            f"{int(some.sum())} nodes of {count} questions; the loss of some points towards success in "
            f"{helped} of these, in {hurt} away from it. A predictor needs {2 * FOLDS} questions or more, and {FOLDS} "
            "of each kind. Measure more questions; where nearly every token's loss helps there is nothing to choose."
        )

    def model() -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))

    def judged(columns: slice | list[int]) -> Score:
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        said = cross_val_predict(model(), x[:, columns], y, groups=groups, cv=folds, method="decision_function")
        return _auroc(y, said, groups, seed)

    whole = model().fit(x, y)
    scaler, regression = whole.named_steps["standardscaler"], whole.named_steps["logisticregression"]
    return Predictor(
        teacher,
        divergence,
        tuple(map(float, scaler.mean_)),
        tuple(map(float, scaler.scale_)),
        tuple(map(float, regression.coef_[0])),
        float(regression.intercept_[0]),
        judged(slice(None)),
        judged([NAMES.index(POSITION)]),
        _auroc(y, _tip(x, groups), groups, seed),
        count,
        int(some.sum()),
    )


def _tip(features: FloatArray, groups: npt.NDArray[np.int64]) -> FloatArray:
    """(U,) TIP's score of each node, among those of its question."""
    entropy, reverse_kl = (torch.from_numpy(features[:, NAMES.index(n)]) for n in ("student_entropy", "reverse_kl"))
    mask = torch.from_numpy(groups == np.unique(groups)[:, None])
    scores = tip_scores(entropy.expand(mask.shape), reverse_kl.expand(mask.shape), mask)
    return np.asarray(scores.sum(0).numpy())


def _auroc(y: npt.NDArray[np.bool_], said: FloatArray, groups: npt.NDArray[np.int64], seed: int) -> Score:
    """With a bootstrap over questions."""
    from sklearn.metrics import roc_auc_score

    rng, names = np.random.default_rng(seed), np.unique(groups)
    members = {name: np.flatnonzero(groups == name) for name in names}
    found = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([members[name] for name in rng.choice(names, len(names))])
        if 0 < y[drawn].mean() < 1:
            found.append(roc_auc_score(y[drawn], said[drawn]))
    low, high = np.quantile(found, [0.025, 0.975])
    return Score(float(roc_auc_score(y, said)), float(low), float(high))
