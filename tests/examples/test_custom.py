"""Kernels, divergences and rewards from outside the package: what they compute, and that verl's processes find them."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from paced_verl.divergence import get_divergence
from paced_verl.divergence.selection import get_token_weight
from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.policies import get_sampler
from paced_verl.pacing.protocol import SamplerSettings
from paced_verl.teacher.context import TeacherContext
from tests.checks.test_checks import overrides_of, write_data, write_model

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As VERL_USE_EXTERNAL_MODULES does; each module is imported once a process."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for module in ("custom_kernel", "custom_divergence", "custom_sampler", "custom_tokens"):
        importlib.import_module(module)


def test_kernel() -> None:
    k, n = np.array([0, 1, 5, 10]), 10
    np.testing.assert_allclose(Kernel("root")(k, n), [0, math.sqrt(0.09), 0.5, 0])
    # √(p(1−p)) is the beta kernel of exponents 1/2, whose expectation has a closed form.
    closed = Kernel("beta", alpha=0.5, beta=0.5, estimate="posterior", prior=(2.0, 3.0))(k, n)
    np.testing.assert_allclose(Kernel("root", estimate="posterior", prior=(2.0, 3.0))(k, n), closed, rtol=2e-3)


def distributions(seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    student, teacher = (torch.randn(16, 9, dtype=dtype) * 3).log_softmax(-1), torch.randn(16, 9, dtype=dtype)
    return student, teacher.log_softmax(-1)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_divergence(alpha: float) -> None:
    student, teacher = distributions(seed=0)
    divergence = get_divergence("alpha_divergence")
    s, t = student.exp().numpy(), teacher.exp().numpy()
    expected = (1 - (t**alpha * s ** (1 - alpha)).sum(-1)) / (alpha * (1 - alpha))
    np.testing.assert_allclose(divergence(student, teacher, alpha=alpha), expected, atol=1e-12)
    single = divergence(student.float(), teacher.float(), alpha=alpha)
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(divergence(student, student, alpha=alpha), 0, atol=1e-12)
    # Merging two categories loses information.
    merge = lambda x: torch.cat([x[:, :-2], x[:, -2:].logsumexp(-1, keepdim=True)], -1)  # noqa: E731
    assert (divergence(merge(student), merge(teacher), alpha=alpha).numpy() <= expected).all()
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: divergence(z.log_softmax(-1), teacher[:3, :5], alpha=alpha), logits)


def test_divergence_between_the_two_kls() -> None:
    student, teacher = distributions(seed=1)
    near_one = get_divergence("alpha_divergence")(student, teacher, alpha=1 - 1e-6)
    near_zero = get_divergence("alpha_divergence")(student, teacher, alpha=1e-6)
    np.testing.assert_allclose(near_one, (teacher.exp() * (teacher - student)).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(near_zero, (student.exp() * (student - teacher)).sum(-1), rtol=1e-4)


def test_divergence_where_a_probability_is_zero() -> None:
    student = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]], requires_grad=True)
    value = get_divergence("alpha_divergence")(student, torch.tensor([[-math.inf, 0.0], [-math.inf, 0.0]]))
    np.testing.assert_allclose(value.detach(), [4, 0], atol=1e-6)  # disjoint: 1 / (α (1−α))
    value.sum().backward()
    assert torch.isfinite(student.grad).all()


def test_sampler() -> None:
    table = PassRateTable(5)
    table.observe([0, 1, 2, 4], [1, 4, 2, 0], [4, 4, 4, 4], step=0)  # nobody has tried 3: it counts as 1/2
    settings = SamplerSettings(power=0.0, explore=0.0, seed=0, skip_zero_weight=True, epoch_size=5)
    sampler = get_sampler("easy_first")(table, Kernel(), settings)
    prompts = sampler.draw(5)
    assert prompts.tolist() == [1, 2, 3, 0, 4]
    raw = np.array([0.0, 0.25, (0.1875 + 0.25) / 4, 0.1875, 0.0])
    np.testing.assert_allclose(sampler.loss_weights(prompts), raw / raw.mean(), rtol=1e-6)
    table.observe([0], [8], [8], step=1)
    sampler.update([0])
    state = sampler.state_dict()
    assert sampler.draw(2).tolist() == [1, 0], "sorted anew when a pass begins"
    sampler.load_state_dict(state)
    assert list(sampler) == [1, 0, 2, 3, 4]


def test_tokens() -> None:
    known = {"student_entropy": torch.tensor([[0.1, 3.0, 0.2, 2.0], [1.0, 5.0, 0.0, 0.0]])}
    mask = torch.tensor([[True] * 4, [True, False, True, True]])
    factor = get_token_weight("forking")(known, mask, 0.5)
    assert factor.tolist() == [[0, 2, 0, 2], [1.5, 0, 1.5, 0]]


def test_context() -> None:
    row = {
        "raw_prompt": [{"role": "user", "content": "2 + 2?"}],
        "reward_model": {"ground_truth": "4"},
        "extra_info": {"solution": "Count on from 2.\nThat is 4."},
    }
    (shown,) = TeacherContext(str(EXAMPLES / "custom_context.jinja")).messages(row)
    assert shown["content"].startswith("2 + 2?\n\nA good solution begins like this:\nCount on")
    assert "the answer 4." in shown["content"]
    assert "That is" not in shown["content"]


def plan(folder: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = overrides_of(folder, "trainer.total_training_steps=3", *overrides, group="reverse_kl")
    command = [sys.executable, "-m", "paced_verl.cli", "plan", *own]
    environment = {**os.environ, "COLUMNS": "200", **environment}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(EXAMPLES), os.environ.get("PYTHONPATH")]))
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_verl_loads_them_and_the_plan_accepts_their_names(tmp_path: Path) -> None:
    """The command lines in the examples' docstrings: verl imports the modules while it is being imported itself."""
    write_data(tmp_path / "train.parquet")
    for model in ("student", "teacher"):
        write_model(tmp_path / model, ["problem"])
    overrides = (
        "paced.weight.kernel=root",
        "paced.schedule.0.divergence=alpha_divergence",
        "+paced.schedule.0.parameters.alpha=0.3",
        "paced.sampler.policy=easy_first",
        "paced.tokens.select=forking",
        f"paced.teacher.context={EXAMPLES}/custom_context.jinja",
    )
    modules = "custom_kernel,custom_divergence,custom_sampler,custom_tokens"
    done = plan(tmp_path, *overrides, VERL_USE_EXTERNAL_MODULES=modules)
    assert done.returncode == 0, done.stderr
    assert "alpha_divergence on student responses" in done.stdout
    assert "weight: root" in done.stdout
    assert "sampler: easy_first" in done.stdout
    assert "tokens: forking, 50% of each response" in done.stdout
    assert "custom_context.jinja" in done.stdout


def test_reward() -> None:
    from verl.trainer.ppo.reward import get_custom_reward_fn

    path = str(EXAMPLES / "custom_reward.py")
    reward = get_custom_reward_fn(
        OmegaConf.create({"reward": {"custom_reward_function": {"path": path, "name": "compute_score"}}})
    )
    assert reward is not None
    for response, right in [
        (r"So \boxed{2}, no: \boxed{\frac{2}{4}}.", 1.0),
        (r"\boxed{0.5}", 1.0),
        (r"\boxed{0.5}, no: \boxed{2}", 0.0),
        ("The answer is 1/2", 0.0),
        (r"\boxed{", 0.0),
    ]:
        score = reward(data_source="mine", solution_str=response, ground_truth=r"\frac{1}{2}", extra_info={})
        assert score == {"score": right, "acc": right}, response
