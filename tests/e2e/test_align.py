"""`paced-verl align` on real servers: what it measures is what the student's own tree of responses says."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paced_verl.tasks.reward import compute_score
from scripts.experiments.aligned import exact
from tests.e2e.harness import TIMEOUT, Workplace

SETTINGS = (
    "paced.alignment.questions=4",
    "paced.alignment.rollouts=12",
    "paced.alignment.nodes=6",
    "paced.alignment.visits=30",
    "paced.alignment.contexts=[none,solution]",
)
LENGTH = 32


def align(workplace: Workplace, out: Path, *overrides: str) -> str:
    command = [sys.executable, "-m", "paced_verl.cli", "align", "--out", str(out), "+paced=two_stage"]
    command += [*workplace.overrides(steps=4), *SETTINGS, *overrides]
    done = subprocess.run(command, cwd=workplace.folder, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_measured_success_is_that_of_all_responses_and_a_teacher_that_is_the_student_has_no_gradient(
    workplace: Workplace, tmp_path: Path
) -> None:
    out = tmp_path / "alignment"
    shutil.copytree(workplace.models / "student", tmp_path / "copy")
    same = f"distillation.teacher_models.teacher_model.model_path={tmp_path}/copy"
    align(workplace, out, same)
    numbers = json.loads((out / "alignment.json").read_text())
    rollouts = [row for file in (out / "rollouts").iterdir() for row in pq.read_table(file).to_pylist()]
    free = [row for row in rollouts if row["forced"] < 0]
    assert numbers["rollouts"] == {"free": 48, "forced": len(rollouts) - 48}
    assert len(free) == 48
    assert numbers["tokens"]["generated"] == sum(row["generated"] for row in rollouts)

    teachers = {(row["teacher"], row["divergence"]): row for row in numbers["teachers"]}
    itself = teachers["teacher_model/none", "reverse_kl"]
    assert itself["undefined"] == itself["nodes"] > 0, "student and teacher say the same"
    assert teachers["teacher_model/solution", "reverse_kl"]["undefined"] < itself["nodes"]

    model = AutoModelForCausalLM.from_pretrained(workplace.models / "student", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(workplace.models / "student")
    data = pq.read_table(workplace.models / "data" / "train.parquet").to_pylist()
    checked = 0
    for row in pq.read_table(out / "tokens.parquet").to_pylist():
        problem = data[numbers["questions"][row["question"]]["prompt"]]
        prompt = tokenizer.apply_chat_template(problem["prompt"], add_generation_prompt=True)["input_ids"]
        begun = [*tokenizer.encode(row["before"], add_special_tokens=False), row["token"]]

        def correct(tokens, problem=problem) -> bool:
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            truth = problem["reward_model"]["ground_truth"]
            return compute_score(problem["data_source"], text, truth, problem["extra_info"])["acc"] == 1

        ends = frozenset({tokenizer.eos_token_id})
        truth = exact.success(model, len(tokenizer), prompt, begun, ends, LENGTH, correct, left=0.01, most=2000)
        rate = row["k"] / row["n"]
        middle = min(max(rate, truth.low), truth.high)
        error = math.sqrt(max(middle * (1 - middle), 0.01) / row["n"])
        assert truth.low - 4.5 * error <= rate <= truth.high + 4.5 * error, (row, truth)
        checked += 1
    assert checked >= 20

    before = len(list((out / "rollouts").iterdir()))
    assert "alignment.html" in align(workplace, out, same)
    assert len(list((out / "rollouts").iterdir())) == before, "nothing was left to ask"
