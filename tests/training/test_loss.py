"""Promises 1 and 2: one gradient whatever the split, and verl's own loss where nothing is paced."""

from __future__ import annotations

import math
import os
import socket
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from verl.trainer.distillation.losses import distillation_ppo_loss
from verl.utils.ulysses import set_ulysses_sequence_parallel_group

from paced_verl import fields
from paced_verl.config import PacedConfig
from paced_verl.pacing.schedule import Schedule
from paced_verl.training.loss import paced_loss
from tests.batches import (
    PACED,
    SCHEDULE,
    TOPK,
    VOCAB,
    Row,
    actor_config,
    call,
    distillation_config,
    make_rows,
    micro_batch,
)

MODES = ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm", "token-sum"]


class Student(torch.nn.Module):
    """Enough of a language model: logits of the next token from the token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = torch.nn.Embedding(VOCAB, 8)
        self.head = torch.nn.Linear(8, VOCAB, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embedding(ids)))


def step(student: torch.nn.Module, splits: list[list[Row]], whole: list[Row], mode: str, dp_size: int = 1) -> float:
    """Accumulate the gradient of a batch over micro-batches; returns the loss."""
    loss_fn = partial(
        paced_loss, config=actor_config(mode), distillation_config=distillation_config(), paced=PACED, schedule=SCHEDULE
    )
    total = 0.0
    for rows in splits:
        data = micro_batch(rows, whole, dp_size)
        loss, _ = call(loss_fn, student(data["input_ids"].values()), data)
        loss.backward()
        total += float(loss)
    return total


def gradient(student: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in student.parameters()])


def reference(rows: list[Row], mode: str) -> tuple[float, torch.Tensor]:
    """``(1/N) Σ w̃_i ∇L_i`` row by row in plain float64, from the formulas alone."""
    student = Student().double()
    tokens, norm = sum(int(row.mask.sum()) for row in rows), max(len(row.response) for row in rows)
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids = torch.cat([row.prompt, row.response])
        log_s = torch.log_softmax(student(ids), -1)
        losses = []
        for t in range(len(row.response)):
            position = len(row.prompt) - 1 + t
            log_t = row.teacher_logprobs[position].double()
            log_top = log_s[position, row.teacher_ids[position].long()]
            rest = torch.ones(VOCAB, dtype=torch.bool).index_fill_(0, row.teacher_ids[position].long(), False)
            log_p = torch.cat([log_t, torch.log1p(-log_t.exp().sum()).view(1)])
            log_q = torch.cat([log_top, log_s[position, rest].logsumexp(0).view(1)])
            if row.stage == 0:
                losses.append((log_p.exp() * (log_p - log_q)).sum())
            else:
                losses.append((log_q.exp() * (log_q - log_p)).sum())
        row_sum = (torch.stack(losses) * row.mask).sum()
        scale = {
            "token-mean": 1 / tokens,
            "token-sum": 1.0,
            "seq-mean-token-sum": 1 / len(rows),
            "seq-mean-token-mean": 1 / len(rows) / int(row.mask.sum()),
            "seq-mean-token-sum-norm": 1 / len(rows) / norm,
        }[mode]
        total = total + row.weight * row_sum * scale
    total.backward()
    return float(total), gradient(student)


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_is_the_weighted_mean_whatever_the_micro_batches(mode: str) -> None:
    rows = make_rows(8)
    loss, expected = reference(rows, mode)
    orders = [rows, rows[::-1], rows[3:] + rows[:3]]
    sizes = [1, 2, 8] if mode != "seq-mean-token-sum-norm" else [8]  # verl's norm is each micro-batch's own width
    for order in orders:
        for size in sizes:
            student = Student()
            splits = [order[i : i + size] for i in range(0, len(order), size)]
            assert step(student, splits, rows, mode) == pytest.approx(loss, rel=1e-5)
            torch.testing.assert_close(gradient(student).double(), expected, rtol=1e-4, atol=1e-7)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _rank(rank: int, port: int, modes: list[str], queue: mp.SimpleQueue) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    rows = make_rows(8)
    mine = [rows[:3] + rows[6:7], rows[3:6] + rows[7:]][rank]  # rank 1 holds both rows of weight 0
    # As many micro-batches on each rank, as verl's engine makes sure, but not of the same rows.
    splits = [mine[:1], mine[1:]] if rank == 0 else [mine[:2], mine[2:]]
    gradients = []
    for mode in modes:
        student = fully_shard(Student(), mesh=init_device_mesh("cpu", (2,)))
        step(student, splits, rows, mode, dp_size=2)
        gradients.append(torch.cat([p.grad.full_tensor().flatten() for p in student.parameters()]).tolist())
    if rank == 0:
        queue.put(gradients)
    dist.destroy_process_group()


def test_two_fsdp_ranks_give_the_gradient_of_one_process() -> None:
    modes = [mode for mode in MODES if mode != "seq-mean-token-sum-norm"]  # see above
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, args=(_free_port(), modes, queue), nprocs=2)  # one start: processes that import verl are slow
    for mode, actual in zip(modes, queue.get(), strict=True):
        _, expected = reference(make_rows(8), mode)
        torch.testing.assert_close(torch.tensor(actual).double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"])
def test_uniform_weights_and_verls_divergence_are_verls_loss(mode: str) -> None:
    rows = [Row(r.prompt, r.response, r.mask, r.teacher_ids, r.teacher_logprobs, 0, 1.0) for r in make_rows(6)]
    data = micro_batch(rows, rows)
    schedule = Schedule.from_ends([1.0], [{"divergence": "forward_kl_topk", "responses": "student"}], 1)
    logits = torch.randn(len(data["input_ids"].values()), VOCAB, requires_grad=True)
    theirs = logits.detach().clone().requires_grad_()

    paced = partial(
        paced_loss, config=actor_config(mode), distillation_config=distillation_config(), paced=PACED, schedule=schedule
    )
    verl = partial(
        distillation_ppo_loss,
        config=actor_config(mode),
        distillation_config=distillation_config("forward_kl_topk"),
        data_format="thd",
    )
    loss, _ = call(paced, logits, data)
    expected, _ = call(verl, theirs, data)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad, theirs.grad, rtol=1e-5, atol=1e-8)


def test_a_micro_batch_with_nothing_to_train_still_has_a_gradient_of_zeros() -> None:
    rows = [Row(r.prompt, r.response, r.mask, r.teacher_ids, r.teacher_logprobs, r.stage, 0.0) for r in make_rows(2)]
    student = Student()
    assert step(student, [rows], rows, "token-mean") == 0.0
    assert torch.count_nonzero(gradient(student)) == 0


def test_rows_of_weight_zero_may_hold_anything() -> None:
    """Rows the teacher was not asked about carry no teacher distribution that means anything."""
    rows = make_rows(4)
    broken = [
        row
        if row.weight
        else Row(
            row.prompt, row.response, row.mask, row.teacher_ids * 0, row.teacher_logprobs * torch.nan, row.stage, 0.0
        )
        for row in rows
    ]
    whole, other = Student(), Student()
    step(whole, [rows], rows, "token-mean")
    step(other, [broken], broken, "token-mean")
    torch.testing.assert_close(gradient(other), gradient(whole), rtol=0, atol=0)


def test_metrics_are_means_over_trained_tokens_whatever_the_split() -> None:
    rows = make_rows(8)
    loss_fn = partial(
        paced_loss,
        config=actor_config("token-mean"),
        distillation_config=distillation_config(),
        paced=PACED,
        schedule=SCHEDULE,
    )
    means = []
    for size in (1, 8):
        sums: dict[str, float] = {}
        for i in range(0, 8, size):
            data = micro_batch(rows[i : i + size], rows)
            _, metrics = call(loss_fn, Student()(data["input_ids"].values()), data)
            for name, metric in metrics.items():
                sums[name] = sums.get(name, 0.0) + metric.aggregate()
        tokens = sums["paced/divergence/tokens"]
        assert tokens == sum(int(row.mask.sum()) for row in rows if row.weight)
        means.append({name: total / tokens for name, total in sums.items()})
    assert means[0] == pytest.approx(means[1], rel=1e-5)


def test_the_clamp_is_verls() -> None:
    rows = make_rows(4, full_mask=True, stages=(0,))
    config = distillation_config(loss_max_clamp=0.05)
    loss_fn = partial(
        paced_loss, config=actor_config("token-sum"), distillation_config=config, paced=PACED, schedule=SCHEDULE
    )
    data = micro_batch(rows, rows)
    loss, _ = call(loss_fn, Student()(data["input_ids"].values()), data)
    assert 0 < float(loss) <= 0.05 * sum(row.weight * len(row.response) for row in rows) * (1 + 1e-6)


def _paced(**block: object) -> PacedConfig:
    stages = [{"until": 1.0, "divergence": "forward_kl", "responses": "student"}]
    return PacedConfig.parse({"teacher": {"topk": TOPK}, "schedule": stages} | block)


def test_an_interpolation_is_the_mixture_that_the_row_says() -> None:
    rows = [replace(row, stage=0) for row in make_rows(4, stages=(0,))]
    values = {}
    for name, stage, mix in [
        ("forward", {"divergence": "forward_kl"}, 0.0),
        ("reverse", {"divergence": "reverse_kl"}, 0.0),
        ("mixed", {"divergence": "forward_kl", "towards": "reverse_kl"}, 0.3),
    ]:
        schedule = Schedule.from_ends([1.0], [stage | {"responses": "student"}], 10)
        loss_fn = partial(
            paced_loss, config=actor_config("token-sum"), distillation_config=distillation_config(), paced=PACED,
            schedule=schedule,
        )  # fmt: skip
        mixed = [replace(row, mix=mix) for row in rows]
        data = micro_batch(mixed, mixed)
        values[name] = float(call(loss_fn, Student()(data["input_ids"].values()), data)[0])
    assert values["mixed"] == pytest.approx(0.7 * values["forward"] + 0.3 * values["reverse"], rel=1e-5)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_selected_tokens_are_the_same_whatever_the_micro_batches(mode: str) -> None:
    rows, gradients = make_rows(8), []
    for size in (1, 3, 8):
        student = Student()
        loss_fn = partial(
            paced_loss, config=actor_config(mode), distillation_config=distillation_config(),
            paced=_paced(tokens={"select": "tip", "keep": 0.5}), schedule=SCHEDULE,
        )  # fmt: skip
        for i in range(0, 8, size):
            data = micro_batch(rows[i : i + size], rows)
            call(loss_fn, student(data["input_ids"].values()), data)[0].backward()
        gradients.append(gradient(student))
    whole = Student()
    step(whole, [rows], rows, mode)
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other)
    assert not torch.allclose(gradients[0], gradient(whole)), "half of the tokens train differently from all"


@pytest.mark.parametrize(("tokens", "kept"), [({}, None), ({"select": "tip", "keep": 0.3}, 0.3)])
def test_the_share_that_a_selection_keeps_is_told_and_only_where_there_is_one(tokens: dict, kept: float | None) -> None:
    rows, totals = make_rows(8), {"kept": 0.0, "tokens": 0.0}
    student = Student()
    loss_fn = partial(
        paced_loss, config=actor_config("token-mean"), distillation_config=distillation_config(),
        paced=_paced(tokens=tokens), schedule=SCHEDULE,
    )  # fmt: skip
    lengths: list[int] = []
    for i in range(0, 8, 3):
        data = micro_batch(rows[i : i + 3], rows)
        _, metrics = call(loss_fn, student(data["input_ids"].values()), data)
        assert ("paced/divergence/kept" in metrics) == (kept is not None)
        weighs = fields.per_row(data[fields.WEIGHT]).view(-1) != 0
        masks = data["response_mask"].to_padded_tensor(0).bool() & weighs[:, None]
        lengths += masks.sum(1).tolist()
        for name in totals:
            if f"paced/divergence/{name}" in metrics:
                totals[name] += float(metrics[f"paced/divergence/{name}"].aggregate())
    if kept is not None:
        assert totals["tokens"] == sum(lengths)
        assert totals["kept"] == sum(math.ceil(kept * length - 1e-9) for length in lengths)


def _sequence_parallel(rank: int, port: int, rows: list[Row], results: mp.SimpleQueue) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    set_ulysses_sequence_parallel_group(dist.group.WORLD)
    loss_fn = partial(
        paced_loss, config=actor_config("token-mean"), distillation_config=distillation_config(), paced=PACED,
        schedule=SCHEDULE,
    )  # fmt: skip
    data, student = micro_batch(rows, rows), Student()
    offsets, ids = data["input_ids"].offsets(), data["input_ids"].values()
    total = len(ids)
    padded = torch.nn.functional.pad(ids, (0, total % 2))
    part = padded.view(2, -1)[rank]  # verl pads the packed sequence and gives each rank its share
    outputs = loss_fn(student_logits=student(part).unsqueeze(0), data=data)
    gathered = {}
    for name, value in outputs.items():
        pieces = [torch.zeros_like(value.squeeze(0)) for _ in range(2)]
        dist.all_gather(pieces, value.squeeze(0).detach().contiguous())
        pieces[rank] = value.squeeze(0)
        gathered[name] = torch.nested.nested_tensor_from_jagged(torch.cat(pieces)[:total], offsets)
    loss, _ = loss_fn(model_output=gathered, data=data)
    loss.backward()
    grad = gradient(student)
    dist.all_reduce(grad)
    if rank == 0:
        results.put((float(loss.detach()), grad.tolist()))
    dist.barrier()
    dist.destroy_process_group()


def with_tails(rows: list[Row]) -> list[Row]:
    """The same rows, of a teacher that says a tail of its own at each position."""
    generator = torch.Generator().manual_seed(2)
    return [replace(row, teacher_tail=-20 * torch.rand(len(row.teacher_ids), generator=generator)) for row in rows]


def test_a_tail_that_the_teacher_says_is_the_one_that_counts() -> None:
    rows = with_tails(make_rows(4, full_mask=True, stages=(1,)))
    data, expected = micro_batch(rows, rows), 0.0
    loss_fn = partial(
        paced_loss, config=actor_config("token-sum"), distillation_config=distillation_config(), paced=PACED,
        schedule=SCHEDULE,
    )  # fmt: skip
    loss, _ = call(loss_fn, Student()(data["input_ids"].values()), data)
    for row in rows:
        assert row.teacher_tail is not None
        place = slice(len(row.prompt) - 1, len(row.prompt) + len(row.response) - 1)
        log_t = torch.cat([row.teacher_logprobs, row.teacher_tail[:, None]], -1)[place].double().log_softmax(-1)
        log_s = Student().double()(torch.cat([row.prompt, row.response]))[place].log_softmax(-1)
        ids = row.teacher_ids[place].long()
        tail = log_s.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        categories = torch.cat([log_s.gather(1, ids), tail], -1)
        expected += row.weight * float((categories.exp() * (categories - log_t)).sum())
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_two_ranks_that_share_a_sequence_have_its_gradient() -> None:
    rows = with_tails(make_rows(5))
    assert sum(len(row.prompt) + len(row.response) for row in rows) % 2, "the last rank has padding"
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_sequence_parallel, args=(_free_port(), rows, results), nprocs=2)
    loss, grad = results.get()
    alone = Student()
    assert loss == pytest.approx(step(alone, [rows], rows, "token-mean"), rel=1e-5)
    torch.testing.assert_close(torch.tensor(grad), gradient(alone), rtol=1e-4, atol=1e-6)
