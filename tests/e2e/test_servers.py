"""Servers without a trainer: what they answer is what transformers computes from the same files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.harness import TIMEOUT, Workplace

SEQUENCE, TOPK = [5, 9, 3, 12, 7, 4], 64
ASK = """
import asyncio, json, sys
from paced_verl.launch.hydra import compose, describe, fork_workers
from paced_verl.teacher import servers
from paced_verl.teacher.protocol import Media

config = compose(["+paced=two_stage", *sys.argv[2:]])
describe(config)
fork_workers(config)
started = servers.start(config)
sequence = json.loads(sys.argv[1])

async def ask(who):
    ids, log_probs = await who.top_k(sequence, Media(), None)
    written = await who.respond(sequence, {"temperature": 0.0, "max_tokens": 8}, None)
    return {"ids": ids.tolist(), "log_probs": log_probs.tolist(), "written": written}

answers = {name: asyncio.run(ask(who)) for name, who in vars(started).items()}
reading = servers.StudentServers(started.student.client, topk=0)
answers["student"]["read"] = [values.tolist() for values in asyncio.run(reading.top_k(sequence, Media(), None))]
print("ANSWERS " + json.dumps(answers))
"""


def test_servers_of_both_models_answer_as_transformers_does(workplace: Workplace) -> None:
    command = [sys.executable, "-c", ASK, json.dumps(SEQUENCE), *workplace.overrides(steps=4)]
    done = subprocess.run(command, cwd=workplace.folder, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("ANSWERS "))
    answers = json.loads(line.removeprefix("ANSWERS "))
    assert sorted(answers) == ["student", "teacher"]
    for name, answer in answers.items():
        model = AutoModelForCausalLM.from_pretrained(workplace.models / name, dtype=torch.float32)
        with torch.no_grad():
            logits = model(torch.tensor([SEQUENCE])).logits[0]
            written = model.generate(torch.tensor([SEQUENCE]), max_new_tokens=8, do_sample=False)
        assert written[0, len(SEQUENCE) :].tolist() == answer["written"], name
        # verl's servers know no tokens but the tokenizer's; these models have rows for more.
        tokens = len(AutoTokenizer.from_pretrained(workplace.models / name))
        assert tokens < logits.shape[-1]
        expected = logits[:, :tokens].log_softmax(-1)
        # The scores of a position are of the token after it; the last one has none.
        for position, (ids, log_probs) in enumerate(zip(answer["ids"][:-1], answer["log_probs"][:-1], strict=True)):
            assert len(set(ids)) == len(ids) == TOPK
            assert log_probs == pytest.approx(expected[position, ids].tolist(), abs=1e-4), name
            assert log_probs == pytest.approx(expected[position].topk(TOPK).values.tolist(), abs=1e-4), name
        if "read" in answer:  # of each position the token that follows, and nothing else
            ids, log_probs = answer["read"]
            assert ids[:-1] == [[token] for token in SEQUENCE[1:]]
            own = expected[range(len(SEQUENCE) - 1), SEQUENCE[1:]]
            assert [value for (value,) in log_probs[:-1]] == pytest.approx(own.tolist(), abs=1e-4)
