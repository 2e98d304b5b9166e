"""What a measurement leaves: tables of nodes, tokens and scores, and everything that is said of them in numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paced_verl.alignment.nodes import FEATURES, Node
from paced_verl.alignment.result import Aligned, Measured, align, measured
from paced_verl.alignment.summary import summarise
from paced_verl.alignment.targets import window_of
from paced_verl.alignment.tree import FREE
from paced_verl.atomic import replacing
from paced_verl.forcing.run import Measurement, NothingToMeasureError

NUMBERS, SCORES, TOKENS = "alignment.json", "scores.parquet", "tokens.parquet"


def write(one: Measurement, nodes: Sequence[Node], decode: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    """Evaluate what was measured and write it beside the rollouts; returns the numbers.

    Args:
        one: The measurement, done or stopped.
        nodes: Its nodes.
        decode: Token ids to text.

    Raises:
        NothingToMeasureError: No node has been visited often enough.
    """
    settings, names = one.settings, [teacher.name for teacher in one.scoring.teachers]
    trees, carriers, ends = one.trees(), one.carriers(), one.student.policy.ends
    found = measured(nodes, trees, carriers, ends)
    if not found.nodes:
        dropped = ", ".join(f"{count} with {reason}" for reason, count in found.dropped.items())
        raise NothingToMeasureError(
            f"None of {len(nodes)} nodes is left to score ({dropped}). Give paced.alignment.budget more, or raise "
            "paced.alignment.nodes: a student that is sure of every token has few nodes with a choice."
        )
    aligned = align(found, names, settings.divergence, settings.nulls, settings.support)
    alone = measured(nodes, trees, carriers, ends, own=False)
    others = align(alone, names, settings.divergence, (), settings.support)
    correct = np.array([carriers[node.question][node.carrier].success == 1 for node in alone.nodes])
    rates = {q: float(np.mean([rollout.success for rollout in found_])) for q, found_ in carriers.items()}
    numbers = summarise(found, aligned, (alone, others), names, correct, rates, one.seed)
    numbers |= _counts(one, nodes, found, rates)
    _save(_scores(aligned, found, one), one.store.folder / SCORES)
    _save(_tokens(found, names, decode, one), one.store.folder / TOKENS)
    with replacing(one.store.folder / NUMBERS) as unfinished:
        unfinished.write_text(json.dumps(numbers, indent=1))
    return numbers


def _counts(one: Measurement, nodes: Sequence[Node], found: Measured, rates: dict[int, float]) -> dict[str, Any]:
    written = [entry.written for entry in one.entries]
    free = sum(each.rollout.forced == FREE for each in written)
    return {
        "nodes": {"chosen": len(nodes), "scored": len(found.nodes), "dropped": found.dropped},
        "unasked": unasked(nodes, [teacher.name for teacher in one.scoring.teachers]),
        "rollouts": {"free": free, "forced": len(written) - free},
        "tokens": {"generated": sum(each.generated for each in written)},
        "truncated": sum(each.truncated for each in written),
        "questions": [
            {"prompt": question.prompt, "pass_rate": rates[i], "known_pass_rate": question.pass_rate}
            for i, question in enumerate(one.questions)
        ],
        "settings": one.settings.model_dump(),
    }


def unasked(nodes: Sequence[Node], names: Sequence[str]) -> list[dict[str, Any]]:
    """Who could not be asked, why, at how many nodes, and of how many questions."""
    found: dict[tuple[str, str], list[int]] = {}
    for node in nodes:
        for name, reason in zip(names, node.unasked, strict=True):
            if reason:
                found.setdefault((name, reason), []).append(node.question)
    return [
        {"teacher": name, "reason": reason, "nodes": len(questions), "questions": len(set(questions))}
        for (name, reason), questions in found.items()
    ]


def _scores(aligned: Sequence[Aligned], found: Measured, one: Measurement) -> list[dict[str, Any]]:
    carriers = one.carriers()
    rows = []
    for each in aligned:
        for i, place in enumerate(each.rows.tolist()):
            node = found.nodes[place]
            rows.append(
                {
                    "node": place,
                    "question": node.question,
                    "position": node.position,
                    "window": int(window_of(node.position)),
                    "inclusion": node.inclusion,
                    "outcome": carriers[node.question][node.carrier].success,
                    "teacher": each.teacher,
                    "divergence": each.divergence,
                    "support": each.support,
                    "cosine": each.cosine[i],
                    "dot": each.scores.dot[i],
                    "gg": each.scores.gg[i],
                    "dd": each.scores.dd[i],
                    "noise": each.scores.noise[i],
                    "advantage": each.advantage[i],
                    "natural": each.natural[i],
                    **_known(node, each.teacher, one),
                }
            )
    return rows


def _known(node: Node, teacher: str, one: Measurement) -> dict[str, float | None]:
    """What a training step would know, for who stands for no null teacher."""
    names = [each.name for each in one.scoring.teachers]
    values = node.known[names.index(teacher)].tolist() if teacher in names else [None] * len(FEATURES)
    return dict(zip(FEATURES, values, strict=True))


def _tokens(
    found: Measured, names: Sequence[str], decode: Callable[[Sequence[int]], str], one: Measurement
) -> list[dict[str, Any]]:
    responses = one.responses()
    rows = []
    for place, node in enumerate(found.nodes):
        said = responses[node.question][node.carrier]
        for j, token in enumerate(node.tokens.tolist()):
            rows.append(
                {
                    "node": place,
                    "question": node.question,
                    "before": decode(said[: node.position]),
                    "token": token,
                    "text": decode([token]),
                    "said": token == said[node.position],
                    "p": float(np.exp(node.student[j])),
                    "n": int(found.n[place, j]),
                    "k": float(found.k[place, j]),
                    "q": {name: float(np.exp(node.teachers[t, j])) for t, name in enumerate(names)},
                }
            )
    return rows


def _save(rows: list[dict[str, Any]], file: Path) -> None:
    with replacing(file) as unfinished:
        pq.write_table(pa.Table.from_pylist(rows), unfinished, compression="zstd", write_page_checksum=True)
