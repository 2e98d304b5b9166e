"""The teacher in the trainer's workers, against the model run by itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from paced_verl import fields
from paced_verl.divergence import full_divergence
from paced_verl.launch.hydra import compose
from paced_verl.teacher.engine import ReferenceTeacher, top_k

VOCAB, TOPK = 48, 7
PROMPTS = [[3, 4, 5], [6, 7], [8, 9, 10, 11]]  # what the student sees
TEACHER_PROMPTS = [[3, 3, 4, 4, 5], [6], [8]]
RESPONSES = [[12, 13, 14], [15, 16, 17, 18, 19], [20]]


def write_model(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=128, tie_word_embeddings=seed == 0,
        initializer_range=0.5,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    words = {f"w{i}": i for i in range(VOCAB)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="w1", pad_token="w2"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("student", 0), ("teacher", 1)):
        write_model(folder / name, seed)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """What Ray tells a worker of its group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    told |= {"MASTER_PORT": str(port), "RAY_LOCAL_RANK": "0", "VERL_ENGINE_DEVICE": "cuda"}
    before = dict(os.environ)
    os.environ.update(told)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


def config_of(folder: Path, *overrides: str) -> DictConfig:
    student = f"actor_rollout_ref.model.path={folder}/student"
    config = compose(["+paced=reverse_kl", "+machine=cpu", student, *overrides])
    part: DictConfig = config.actor_rollout_ref
    with open_dict(part):
        part.model.use_remove_padding = "use_remove_padding=false" not in overrides
    return part


def batch(weights: list[float]) -> TensorDict:
    def jagged(rows: list[list[int]]) -> torch.Tensor:
        return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)

    return TensorDict(
        {
            "prompts": jagged(PROMPTS),
            "responses": jagged(RESPONSES),
            "response_mask": jagged([[1] * len(row) for row in RESPONSES]),
            fields.TEACHER_PROMPT: jagged(TEACHER_PROMPTS),
            fields.WEIGHT: torch.tensor(weights).view(-1, 1),
        },
        batch_size=[3],
    )


def log_probs_alone(path: Path, row: int) -> torch.Tensor:
    """(response tokens, V): the teacher's log-probabilities of each token of a response, by the model alone."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.tensor([TEACHER_PROMPTS[row] + RESPONSES[row]])
    with torch.no_grad():
        logits = model(ids).logits[0].double()
    return logits.log_softmax(-1)[len(TEACHER_PROMPTS[row]) - 1 : -1]


def at_response(values: torch.Tensor, row: int) -> torch.Tensor:
    """Of a field at the student's positions, those that predict the response."""
    start = len(PROMPTS[row]) - 1
    return values[start : start + len(RESPONSES[row])]


@pytest.mark.parametrize("remove_padding", [True, False])
def test_top_k_at_the_positions_of_the_student(folder: Path, remove_padding: bool) -> None:
    overrides = [] if remove_padding else ["actor_rollout_ref.model.use_remove_padding=false"]
    config = config_of(folder, *overrides)
    with open_dict(config):
        config.model.use_remove_padding = remove_padding
    answer = ReferenceTeacher(config, str(folder / "teacher"), TOPK).answer(batch([1.0, 0.0, 2.0]))
    assert answer is not None
    ids, log_probs, tail = (answer[name].unbind() for name in ("teacher_ids", "teacher_logprobs", "teacher_tail"))
    for row in (0, 2):
        whole = log_probs_alone(folder / "teacher", row)
        expected = whole.topk(TOPK)
        others = whole.scatter(1, expected.indices, -torch.inf).logsumexp(-1)
        assert len(ids[row]) == len(PROMPTS[row]) + len(RESPONSES[row])
        assert torch.equal(at_response(ids[row], row).long(), expected.indices)
        torch.testing.assert_close(at_response(log_probs[row], row).double(), expected.values, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(at_response(tail[row], row).double(), others, atol=1e-4, rtol=1e-4)
    # A row of weight 0 was not computed; it holds a distribution all the same.
    assert torch.allclose(log_probs[1].exp().sum(-1) + tail[1].exp(), torch.ones(len(log_probs[1])))


@pytest.mark.parametrize("weights", [[0.5, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.2]])
def test_fixed_micro_batches_are_whole_whatever_trains(folder: Path, weights: list[float]) -> None:
    """verl refuses a number of rows that its size of micro-batches, 2, does not divide."""
    ref = "actor_rollout_ref.ref.log_prob"
    config = config_of(folder, f"{ref}_use_dynamic_bsz=False", f"{ref}_micro_batch_size_per_gpu=2")
    teacher = ReferenceTeacher(config, f"{folder}/teacher", TOPK)
    answer = teacher.answer(batch(weights))
    assert answer is not None
    for row, weight in enumerate(weights):
        ids = at_response(answer["teacher_ids"].unbind()[row], row)
        ours = at_response(answer["teacher_logprobs"].unbind()[row], row)
        if weight:
            expected = log_probs_alone(folder / "teacher", row).gather(1, ids.long())
            torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("largest", [0.0, 27.0, 88.0])
def test_the_tail_is_exact_whatever_the_size_of_the_logits(dtype: torch.dtype, largest: float) -> None:
    """1 − Σ p of log-probabilities in float32 would be off by up to 4e-6, which is more than most of these tails."""
    torch.manual_seed(0)
    logits = torch.randn(64, 20_000)
    logits.scatter_add_(1, logits.topk(TOPK).indices, 4 + 16 * torch.rand(64, 1).expand(-1, TOPK))
    logits = (logits + largest - logits.amax(1, keepdim=True)).to(dtype)
    answer = top_k(logits, TOPK)
    exact = logits.double()
    ids = answer["teacher_ids"].long()
    assert torch.equal(exact.gather(1, ids), exact.topk(TOPK).values)
    others = exact.scatter(1, ids, -torch.inf).logsumexp(-1) - exact.logsumexp(-1)
    assert (others < -12).any()
    assert (others > -1).any()
    assert {name: value.dtype for name, value in answer.items()} == {
        "teacher_ids": torch.int32, "teacher_logprobs": torch.float32, "teacher_tail": torch.float32
    }  # fmt: skip
    torch.testing.assert_close(answer["teacher_tail"].double(), others, atol=2e-5, rtol=0)
    torch.testing.assert_close(
        answer["teacher_logprobs"].double(), exact.log_softmax(-1).gather(1, ids), atol=2e-5, rtol=0
    )


def test_the_whole_vocabulary_from_hidden_states(folder: Path) -> None:
    teacher = ReferenceTeacher(config_of(folder), str(folder / "teacher"), "full")
    answer = teacher.answer(batch([1.0, 1.0, 1.0]))
    assert answer is not None
    for row, hidden in enumerate(answer["teacher_hidden"].unbind()):
        expected = log_probs_alone(folder / "teacher", row)
        logits = torch.randn(len(expected), VOCAB, generator=torch.Generator().manual_seed(row))
        result = full_divergence(logits, at_response(hidden, row), teacher.head(), divergence="forward_kl")
        exact = (expected.exp() * (expected - logits.double().log_softmax(-1))).sum(-1)
        torch.testing.assert_close(result.value.double(), exact, atol=1e-4, rtol=1e-4)


def weights_of(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.full_tensor().clone() if hasattr(p, "full_tensor") else p.clone() for p in module.parameters()]


def test_a_moving_average_follows_the_student_and_is_saved(folder: Path, tmp_path: Path) -> None:
    config: Any = config_of(folder)
    teacher = ReferenceTeacher(config, str(folder / "student"), TOPK)
    student = ReferenceTeacher(config, str(folder / "student"), TOPK)
    with torch.no_grad():
        for parameter in student.engine.module.parameters():
            parameter.add_(1.0)
    before, target = weights_of(teacher.engine.module), weights_of(student.engine.module)
    teacher.follow(student.engine, 0.75)
    after = weights_of(teacher.engine.module)
    for old, new, goal in zip(before, after, target, strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * goal)
    teacher.save(tmp_path)
    teacher.follow(student.engine, 0.0)
    for new, goal in zip(weights_of(teacher.engine.module), target, strict=True):
        assert torch.equal(new, goal)
    teacher.load(tmp_path)
    for new, saved in zip(weights_of(teacher.engine.module), after, strict=True):
        assert torch.equal(new, saved)
