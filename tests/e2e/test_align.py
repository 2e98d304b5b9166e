"""`paced-verl align` on real servers: what it measures is what the student's own tree of responses says."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paced_verl.alignment.tree import FREE, Tree
from paced_verl.alignment.visits import ROUNDS, missing, plan
from paced_verl.forcing.store import Store
from paced_verl.tasks.reward import compute_score
from scripts.experiments.aligned import exact
from tests.e2e.harness import TIMEOUT, Workplace, descendants

SETTINGS = (
    "paced.alignment.questions=4",
    "paced.alignment.rollouts=12",
    "paced.alignment.nodes=6",
    "paced.alignment.visits=30",
    "paced.alignment.contexts=[none,solution]",
)
LENGTH = 32


def command_of(workplace: Workplace, out: Path, *overrides: str) -> list[str]:
    command = [sys.executable, "-m", "paced_verl.cli", "align", "--out", str(out), "+paced=two_stage"]
    return [*command, *workplace.overrides(steps=4), *SETTINGS, *overrides]


def align(command: list[str], workplace: Workplace) -> str:
    done = subprocess.run(command, cwd=workplace.folder, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def align_and_kill(command: list[str], workplace: Workplace, out: Path) -> dict[str, bytes]:
    """SIGKILL its process group while it forces; what it had kept, and that its servers do not outlive it."""
    with (workplace.folder / "killed.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=workplace.folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        deadline = time.monotonic() + TIMEOUT
        while not (out / "rollouts" / "000001.parquet").exists():
            assert process.poll() is None, (workplace.folder / "killed.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        family = descendants()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    alive = [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    for one in alive:
        one.kill()
    assert not alive, [one.cmdline()[:3] for one in alive]
    assert not (out / "alignment.json").exists(), "it was killed before its end"
    return {file.name: file.read_bytes() for file in (out / "rollouts").glob("[0-9]*.parquet")}


def asked_for_what_was_missing_and_no_more(out: Path, ends: frozenset[int]) -> None:
    """Every node has the visits that it was to have, and nobody was asked for more."""
    store = Store(out, json.loads((out / "settings.json").read_text()))
    entries, nodes = store.entries(), store.nodes()
    assert nodes is not None
    free: dict[int, list] = {question: [] for question in range(4)}
    for entry in entries:
        if entry.written.rollout.forced == FREE:
            free[entry.question].append(entry.written.rollout.tokens)
    assert [len(responses) for responses in free.values()] == [12] * 4
    wanted = plan(nodes, free, ("reverse_kl", "forward_kl"), 30)
    trees = {q: Tree([e.written.rollout for e in entries if e.question == q]) for q in free}
    assert missing(wanted, trees, ends, ROUNDS) == []
    forced = Counter(
        (entry.question, entry.written.rollout.tokens[: entry.written.rollout.forced + 1])
        for entry in entries
        if entry.written.rollout.forced != FREE
    )
    most = {(one.question, one.begun): one.visits for one in wanted}
    assert all(count <= most[place] for place, count in forced.items()), "no visit was asked for twice"


def test_measured_success_is_that_of_all_responses_and_a_teacher_that_is_the_student_has_no_gradient(
    workplace: Workplace, tmp_path: Path
) -> None:
    """Killed while it forces, and gone on with: nothing is lost, nothing counted twice, and the numbers are true."""
    out = tmp_path / "alignment"
    shutil.copytree(workplace.models / "student", tmp_path / "copy")
    command = command_of(workplace, out, f"distillation.teacher_models.teacher_model.model_path={tmp_path}/copy")
    kept = align_and_kill(command, workplace, out)
    assert len(kept) >= 2
    assert "alignment.html" in align(command, workplace)
    assert all((out / "rollouts" / name).read_bytes() == content for name, content in kept.items())
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
    asked_for_what_was_missing_and_no_more(out, frozenset({tokenizer.eos_token_id}))
    assert [one["prompt"] for one in numbers["questions"]] == json.loads((out / "settings.json").read_text())["prompts"]
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
