"""The PACED advantage: against loops, by enumeration of a whole response space, and through verl's own functions."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf, open_dict

from paced_verl.advantage.checks import check
from paced_verl.advantage.config import AdvantageConfig
from paced_verl.advantage.estimator import estimate_paced_advantage, paced_advantage
from paced_verl.config import ConfigError
from paced_verl.divergence import get_divergence, teacher_categories
from paced_verl.launch.hydra import PacedCallback
from tests.checks.test_checks import ROWS, write_data, write_model

F64 = torch.float64


# ---------------------------------------------------------------------- the formula, row by row


def a_batch(sizes: tuple[int, ...] = (1, 2, 4, 5), length: int = 6, seed: int = 0) -> dict[str, Any]:
    """Groups of these sizes in random order, float64; responses of different lengths, junk where the mask is 0."""
    generator = torch.Generator().manual_seed(seed)
    index = np.array([f"prompt-{g}" for g, size in enumerate(sizes) for _ in range(size)], dtype=object)
    index = index[torch.randperm(len(index), generator=generator).numpy()]
    rows = len(index)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    mask = (torch.arange(length) < lengths[:, None]).long()
    rewards = torch.zeros(rows, length, dtype=F64)
    rewards[torch.arange(rows), lengths - 1] = torch.randint(2, (rows,), generator=generator).to(F64)
    old, ref = (-torch.rand(rows, length, generator=generator, dtype=F64) * 5 for _ in range(2))
    old[mask == 0], ref[mask == 0] = math.nan, math.inf
    return {
        "token_level_rewards": rewards,
        "response_mask": mask,
        "index": index,
        "old_log_probs": old,
        "ref_log_prob": ref,
    }


def by_hand(batch: dict[str, Any], settings: AdvantageConfig) -> torch.Tensor:
    """The formula with loops, for ``beta``; GRPO's part as in its paper, on groups of two or more."""
    rewards, mask, index = batch["token_level_rewards"], batch["response_mask"], batch["index"]
    result = torch.zeros_like(rewards)
    for i in range(len(index)):
        scores = [float(rewards[j].sum()) for j in range(len(index)) if index[j] == index[i]]
        others = [float(rewards[j].sum()) for j in range(len(index)) if index[j] == index[i] and j != i]
        n, k = len(others), sum(score >= settings.threshold for score in others)

        def w(p: float) -> float:
            return p**settings.alpha * (1 - p) ** settings.beta

        mean = settings.mean_weight or (sum(w(c / n) for c in range(n + 1)) / (n + 1) if n else 1.0)
        weight = 1.0 if n == 0 else w(k / n) / mean if mean else 0.0
        task = 0.0
        if settings.task_coef:
            average = sum(scores) / len(scores)
            deviation = (sum((s - average) ** 2 for s in scores) / (len(scores) - 1)) ** 0.5
            task = (float(rewards[i].sum()) - average) / (deviation + 1e-6)
        for t in range(rewards.shape[1]):
            if mask[i, t]:
                gap = float(batch["ref_log_prob"][i, t]) - float(batch["old_log_probs"][i, t])
                result[i, t] = weight * gap + settings.task_coef * task
    return result


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ((1, 2, 4, 5), {}),
        ((3, 7, 2), {"alpha": 2.0, "beta": 0.5}),
        ((1, 2, 4, 5), {"mean_weight": 0.125}),
        ((2, 4, 5), {"task_coef": 0.7}),
        ((1, 1, 3), {}),
    ],
)
def test_it_is_the_formula_row_by_row(sizes: tuple[int, ...], settings: dict[str, Any]) -> None:
    batch, parsed = a_batch(sizes), AdvantageConfig(**settings)
    expected = by_hand(batch, parsed)
    assert expected.abs().sum() > 1
    torch.testing.assert_close(paced_advantage(**batch, settings=parsed), expected, rtol=1e-12, atol=1e-12)


def test_row_order_does_not_matter() -> None:
    batch, settings = a_batch(), AdvantageConfig(estimate="posterior")
    order = torch.randperm(len(batch["index"]), generator=torch.Generator().manual_seed(3))
    shuffled = {name: values[order.numpy() if name == "index" else order] for name, values in batch.items()}
    expected = paced_advantage(**batch, settings=settings)[order]
    torch.testing.assert_close(paced_advantage(**shuffled, settings=settings), expected, rtol=0, atol=0)


def test_groups_without_a_frontier_get_0_and_padding_rows_change_nothing() -> None:
    batch = a_batch((4, 4, 3))
    group = {name: batch["index"] == name for name in ("prompt-0", "prompt-1", "prompt-2")}
    batch["token_level_rewards"][:] = 0
    batch["token_level_rewards"][group["prompt-1"], 0] = 1
    batch["token_level_rewards"][np.flatnonzero(group["prompt-2"])[0], 0] = 1
    result = paced_advantage(**batch, settings=AdvantageConfig())
    assert result[group["prompt-0"]].abs().sum() == 0, "none correct"
    assert result[group["prompt-1"]].abs().sum() == 0, "all correct"
    assert result[group["prompt-2"]].abs().sum() > 0

    # verl appends rows of a group of their own, masked, with a reward of 0.
    padded = {
        name: np.append(values, "pad") if name == "index" else torch.cat([values, torch.zeros_like(values[:1])])
        for name, values in batch.items()
    }
    torch.testing.assert_close(
        paced_advantage(**padded, settings=AdvantageConfig()), torch.cat([result, torch.zeros_like(result[:1])])
    )


def test_a_batch_of_mastered_prompts_keeps_its_small_weight() -> None:
    """No mean over the batch: 7 of 8 correct weigh the same alone as beside a prompt of the frontier."""
    batch = a_batch((8, 8))
    first = batch["index"] == "prompt-0"
    batch["token_level_rewards"][:] = 0
    batch["token_level_rewards"][np.flatnonzero(first)[:7], 0] = 1
    batch["token_level_rewards"][np.flatnonzero(~first)[:4], 0] = 1
    alone = {name: values[first if name == "index" else torch.as_tensor(first)] for name, values in batch.items()}
    both = paced_advantage(**batch, settings=AdvantageConfig())
    torch.testing.assert_close(paced_advantage(**alone, settings=AdvantageConfig()), both[torch.as_tensor(first)])


def test_a_teacher_that_excludes_a_token_gives_a_large_finite_advantage() -> None:
    batch = a_batch((3,))
    batch["token_level_rewards"][:] = torch.tensor([[0.0], [1.0], [0.0]]) * (torch.arange(6) == 0)
    batch["ref_log_prob"][0, 0] = -math.inf
    result = paced_advantage(**batch, settings=AdvantageConfig())
    assert -400 < float(result[0, 0]) < -80


# ---------------------------------------------------------------------- what the policy gradient estimates

TOKENS, END, LENGTH = 3, 2, 3
PREFIXES = [y for length in range(LENGTH) for y in itertools.product(range(END), repeat=length)]
RESPONSES = [(*y, END) for y in PREFIXES] + list(itertools.product(range(END), repeat=LENGTH))


def policy(seed: int) -> torch.Tensor:
    """Logits (prefixes, tokens) of a tabular autoregressive policy over every response of up to 3 tokens."""
    return torch.randn(len(PREFIXES), TOKENS, generator=torch.Generator().manual_seed(seed), dtype=F64)


STUDENT, TEACHER = policy(1), policy(2)
CORRECT = [int(y[0] == 1) for y in RESPONSES]


def token_log_probs(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log-probabilities of every response's tokens, (responses, LENGTH), 0 after its end; and the mask."""
    table, values, mask = logits.log_softmax(-1), torch.zeros(len(RESPONSES), LENGTH, dtype=F64), []
    rows = []
    for response in RESPONSES:
        own = [table[PREFIXES.index(response[:t]), token] for t, token in enumerate(response)]
        rows.append(torch.stack([*own, *[table.new_zeros(())] * (LENGTH - len(own))]))
        mask.append([1] * len(own) + [0] * (LENGTH - len(own)))
    values = torch.stack(rows)
    return values, torch.tensor(mask)


def surrogate(advantages: torch.Tensor, rows: list[int], logits: torch.Tensor) -> torch.Tensor:
    """Σ_t A_t log S(y_t) of responses: its gradient is the policy gradient at S = S_old."""
    return (advantages * token_log_probs(logits)[0][rows]).sum(-1)


def group_advantages(rows: list[int], settings: AdvantageConfig) -> torch.Tensor:
    """What the plugin gives one prompt's group of these responses."""
    old, mask = token_log_probs(STUDENT)
    rewards = torch.zeros(len(rows), LENGTH, dtype=F64)
    rewards[:, 0] = torch.tensor([CORRECT[row] for row in rows])
    ref, _ = token_log_probs(TEACHER)
    return paced_advantage(rewards, mask[rows], ["prompt"] * len(rows), old[rows], ref[rows], settings)


def gradient(function: Any) -> torch.Tensor:
    logits = STUDENT.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(function(logits), logits)
    return grad


def chances() -> torch.Tensor:
    """S(y) of every response."""
    return token_log_probs(STUDENT)[0].sum(-1).exp()


def token_reverse_kl(logits: torch.Tensor) -> torch.Tensor:
    """Σ_t E_{y_<t ~ S} KL(S(·|y_<t) ‖ T(·|y_<t)), the prefixes' distribution fixed: the plugin's own loss at k = V."""
    reached = torch.stack(
        [sum((s for s, y in zip(chances(), RESPONSES, strict=True) if y[: len(x)] == x), torch.zeros((), dtype=F64))
         for x in PREFIXES]
    )  # fmt: skip
    student = torch.nn.functional.pad(logits.log_softmax(-1), (0, 1), value=-torch.inf)
    teacher = teacher_categories(TEACHER.log_softmax(-1), vocab_size=TOKENS)
    return (reached * get_divergence("reverse_kl")(student, teacher)).sum()


def test_its_policy_gradient_is_minus_that_of_the_token_level_reverse_kl() -> None:
    assert float(chances().sum()) == pytest.approx(1, abs=1e-12), "the responses are all there are"
    everything = list(range(len(RESPONSES)))
    advantages = group_advantages(everything, AdvantageConfig(kernel="uniform"))
    estimated = gradient(lambda logits: (chances() * surrogate(advantages, everything, logits)).sum())
    torch.testing.assert_close(estimated, -gradient(token_reverse_kl), rtol=1e-10, atol=1e-12)

    # Not the sequence-level KL: that one needs the sum of what is to come.
    def sequence_kl(logits: torch.Tensor) -> torch.Tensor:
        log_s, log_t = (token_log_probs(values)[0].sum(-1) for values in (logits, TEACHER))
        return (log_s.exp() * (log_s - log_t)).sum()

    sequence = gradient(sequence_kl)
    assert (estimated + sequence).abs().max() > 0.1 * sequence.abs().max()
    to_come = advantages.flip(-1).cumsum(-1).flip(-1)
    to_go = gradient(lambda logits: (chances() * surrogate(to_come, everything, logits)).sum())
    torch.testing.assert_close(to_go, -sequence, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "settings"),
    [(3, {}), (3, {"alpha": 2.0, "beta": 0.5}), (2, {"estimate": "posterior"})],
)
def test_the_weight_changes_the_size_of_a_prompts_gradient_and_not_its_direction(
    n: int, settings: dict[str, Any]
) -> None:
    """Every group of n responses: the gradient is that without weights, times E[w̃(K of n−1)], K ~ Binomial(n−1, p)."""
    parsed, total = AdvantageConfig(**settings), torch.zeros_like(STUDENT)
    s = chances()
    for rows in itertools.combinations_with_replacement(range(len(RESPONSES)), n):
        ways = math.factorial(n) / math.prod(math.factorial(rows.count(row)) for row in set(rows))
        advantages = group_advantages(list(rows), parsed)
        if advantages.any():
            chance = ways * s[list(rows)].prod()
            total += chance * gradient(lambda x, a=advantages, r=rows: surrogate(a, list(r), x).mean())

    p, m = float(sum(chance for chance, c in zip(s, CORRECT, strict=True) if c)), n - 1
    assert p < 0.4, "where a response's own luck would show"
    weights = parsed.to_kernel()(np.arange(m + 1), m)
    v = sum(math.comb(m, k) * p**k * (1 - p) ** (m - k) * weights[k] for k in range(m + 1)) / weights.mean()
    if not settings:
        assert v == pytest.approx((1 - 1 / m) * p * (1 - p) / weights.mean())

    everything = list(range(len(RESPONSES)))
    unweighted = group_advantages(everything, AdvantageConfig(kernel="uniform"))
    expected = v * gradient(lambda logits: (s * surrogate(unweighted, everything, logits)).sum())
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------------- inside verl


def data_proto(batch: dict[str, Any]) -> Any:
    from verl.protocol import DataProto

    tensors = {name: values for name, values in batch.items() if name != "index"}
    return DataProto.from_dict(tensors=tensors, non_tensors={"uid": batch["index"]})


@pytest.mark.parametrize("by_std", [True, False])
def test_verls_grpo_where_the_teacher_is_the_student_and_only_the_task_counts(by_std: bool) -> None:
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    batch = a_batch((4, 4, 3))
    batch["ref_log_prob"] = batch["old_log_probs"]
    algorithm = OmegaConf.create(
        {"norm_adv_by_std_in_grpo": by_std, "paced": {"kernel": "uniform", "task_coef": 1.0}, "use_kl_in_reward": False}
    )
    keys = [f"{uid}_{row}_0" for row, uid in enumerate(batch["index"])]
    ours, verls = (
        compute_advantage_for_multi_trajectories(
            data_proto(batch), keys, name, norm_adv_by_std_in_grpo=by_std, config=algorithm
        )
        for name in ("paced", "grpo")
    )
    assert verls.batch["advantages"].abs().sum() > 0
    for field in ("advantages", "returns"):
        torch.testing.assert_close(ours.batch[field], verls.batch[field])


REGISTERED = """
import json
import numpy as np, torch
from omegaconf import OmegaConf
import verl.trainer.ppo.v1
from verl.trainer.ppo.v1.trainer_base import compute_advantage_for_multi_trajectories
from verl.protocol import DataProto
mask = torch.ones(6, 2)
data = DataProto.from_dict(
    tensors={
        "response_mask": mask,
        "token_level_rewards": torch.tensor([[0.0, 1.0], [0, 0], [0, 0], [0, 1], [0, 1], [0, 1]]),
        "old_log_probs": -mask,
        "ref_log_prob": -2 * mask,
    },
    non_tensors={"uid": np.array(["a", "a", "a", "b", "b", "b"], dtype=object)},
)
keys = ["a_0_0", "a_1_0", "a_2_0", "b_0_0", "b_1_0", "b_2_0"]
config = OmegaConf.create({"paced": {"mean_weight": 0.5}})
answer = {}
for name in ("paced", "rloo"):
    out = compute_advantage_for_multi_trajectories(data, keys, adv_estimator=name, num_repeat=3, config=config)
    answer[name] = out.batch["advantages"].tolist()
print("ANSWER" + json.dumps(answer))
"""


def test_verls_trainer_finds_it_by_name_and_other_estimators_are_verls() -> None:
    done = subprocess.run([sys.executable, "-c", REGISTERED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.rsplit("ANSWER", 1)[1])
    # Of the other two none is correct beside the first response, one beside each of the next two.
    assert answer["paced"] == [[0, 0], [-0.5, -0.5], [-0.5, -0.5], [0, 0], [0, 0], [0, 0]]
    assert answer["rloo"] == [[1, 1], [-0.5, -0.5], [-0.5, -0.5], [0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("algorithm", "teacher", "words"),
    [
        ({"use_kl_in_reward": True}, True, ["algorithm.use_kl_in_reward=True", "Set it to False"]),
        ({}, False, ["actor_rollout_ref.actor.use_kl_loss", "reference worker"]),
        ({"paced": {"alhpa": 2}}, True, ["algorithm.paced.alhpa", "Did you mean 'alpha'"]),
    ],
)
def test_without_the_group_the_estimator_says_itself_what_is_wrong(
    algorithm: dict[str, Any], teacher: bool, words: list[str]
) -> None:
    batch = a_batch()
    if not teacher:
        batch["ref_log_prob"] = None
    with pytest.raises(ConfigError) as error:
        estimate_paced_advantage(**batch, config=OmegaConf.create(algorithm))
    assert all(word in str(error.value) for word in words), str(error.value)


# ---------------------------------------------------------------------- before a run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("advantage")
    for name, words in (("student", "problem two and"), ("teacher", "problem two and"), ("stranger", "problem other")):
        write_model(folder / name, words.split())
    write_data(folder / "train.parquet", data_source=["openai/gsm8k"] * ROWS)
    return folder


@pytest.fixture(scope="module")
def composed(folder: Path) -> DictConfig:
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(
            "ppo_trainer",
            [
                "+paced=advantage",
                "+machine=cpu",
                f"data.train_files={folder}/train.parquet",
                f"data.val_files={folder}/train.parquet",
                f"actor_rollout_ref.model.path={folder}/student",
                f"actor_rollout_ref.ref.teacher_path={folder}/teacher",
                "actor_rollout_ref.rollout.n=4",
            ],
        )


def changed(config: DictConfig, settings: dict[str, Any]) -> DictConfig:
    config = config.copy()
    with open_dict(config):
        for key, value in settings.items():
            OmegaConf.update(config, key, value, merge=False, force_add=True)
    return config


def test_the_group_is_right_as_it_is_and_says_what_will_run(
    composed: DictConfig, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(composed) == (AdvantageConfig(), [])
    PacedCallback().on_run_start(changed(composed, {"algorithm.paced.task_coef": 0.5}))
    said = capsys.readouterr().out
    assert f"{folder}/teacher" in said
    assert "w̃ where 0 … 3 of the others are correct: 0.00, 2.00, 2.00, 0.00" in said
    assert "0.5 × GRPO" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algorithm.paced.kernal": "beta"}, ["algorithm.paced.kernal", "Did you mean 'kernel'"]),
        ({"algorithm.paced.alpha": -1}, ["algorithm.paced.alpha=-1", "greater than or equal to 0"]),
        ({"algorithm.paced.mean_weight": 0}, ["algorithm.paced.mean_weight=0", "greater than or equal to 0.000001"]),
        ({"algorithm.paced.prior": [2, 2]}, ["algorithm.paced", "prior", "estimate: posterior"]),
        ({"algorithm.paced.kernel": "betta"}, ["betta", "Did you mean 'beta'"]),
        ({"algorithm.paced": None}, ["algorithm.paced=null", "expected a block with the keys"]),
        ({"algorithm.paced": 3}, ["algorithm.paced=3", "expected a block with the keys"]),
        ({"paced.weight.alpha": 2}, ["paced.weight", "does not read them", "algorithm.paced"]),
        ({"actor_rollout_ref.rollout.name": "sglang"}, ["rollout.name=sglang", "vLLM"]),
        (
            {"algorithm.paced.strict": True, "trainer.use_v1": False},
            ["replaced: trainer.use_v1: False → True", "strict"],
        ),
        ({"actor_rollout_ref.rollout.n": 1}, ["actor_rollout_ref.rollout.n=1", "3 or more"]),
        ({"actor_rollout_ref.rollout.n": 2}, ["actor_rollout_ref.rollout.n=2", "would weigh 0", "larger n"]),
        (
            {"algorithm.paced.kernel": "hard_filter", "algorithm.paced.low": 0.4, "algorithm.paced.high": 0.6},
            ["every response would weigh 0", "rollout.n=4"],
        ),
        ({"actor_rollout_ref.ref.teacher_path": None}, ["teacher_path=None", "0 for ever", "task_coef"]),
        ({"actor_rollout_ref.ref.teacher_path": "/no/such"}, ["teacher_path=/no/such does not exist"]),
        ({"actor_rollout_ref.ref.teacher_path": "{folder}/stranger"}, ["vocabulary differs"]),
        ({"actor_rollout_ref.model.lora_rank": 8}, ["LoRA", "adapter"]),
    ],
)
def test_what_cannot_run_ends_before_ray_starts(
    composed: DictConfig, folder: Path, settings: dict[str, Any], words: list[str]
) -> None:
    filled = {k: v.replace("{folder}", str(folder)) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(SystemExit) as stop:
        PacedCallback().on_run_start(changed(composed, filled))
    lines = str(stop.value).splitlines()
    assert len(lines) == 2, lines
    assert all(word in lines[1] for word in words), lines[1]


@pytest.mark.parametrize(
    ("key", "value", "becomes"),
    [
        ("algorithm.adv_estimator", "grpo", "paced"),
        ("algorithm.use_kl_in_reward", True, False),
        ("actor_rollout_ref.actor.use_kl_loss", False, True),
        ("distillation.enabled", True, False),
        ("trainer.v1.trainer_mode", "paced_colocate_async", "colocate_async"),
        ("trainer.critic_warmup", 5, 0),
        ("critic.enable", True, False),
    ],
)
def test_what_the_estimator_needs_otherwise_is_replaced_and_said(
    composed: DictConfig, key: str, value: Any, becomes: Any
) -> None:
    config = changed(composed, {key: value})
    _, (verdict, *others) = check(config)
    assert str(verdict).startswith(f"replaced: {key}: {value} → {becomes} (")
    assert OmegaConf.select(config, key) == becomes
    assert not others
    assert check(config)[1] == [], "settled"


def test_the_student_as_its_own_teacher_is_fine_beside_a_task_reward(composed: DictConfig) -> None:
    check(changed(composed, {"actor_rollout_ref.ref.teacher_path": None, "algorithm.paced.task_coef": 1.0}))


# ---------------------------------------------------------------------- the reference worker's own model


@pytest.mark.parametrize(("teacher", "loaded"), [("teacher", "teacher"), (None, "student"), ("absent", "student")])
def test_verls_reference_worker_loads_the_teacher(
    composed: DictConfig, folder: Path, tmp_path: Path, teacher: str | None, loaded: str
) -> None:
    """verl's own ``init_model`` up to the engine, which records what it was to load."""
    from verl.workers.engine_workers import ActorRolloutRefWorker

    for name, size in (("student", 32), ("teacher", 64)):
        write_model(tmp_path / name, ["problem"])
        file = tmp_path / name / "config.json"
        extra = {"architectures": ["Qwen3ForCausalLM"], "hidden_size": size}
        file.write_text(json.dumps(json.loads(file.read_text()) | extra))
    path = None if teacher is None else str(tmp_path / teacher)
    config = changed(
        composed,
        {
            "actor_rollout_ref.model.path": str(tmp_path / "student"),
            "actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
            "actor_rollout_ref.ref.teacher_path": path,
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 3,
        },
    ).actor_rollout_ref
    OmegaConf.resolve(config)
    if teacher == "absent":
        with open_dict(config):
            del config.ref["teacher_path"]

    built = []

    class Recorder:
        def __init__(self, config: Any) -> None:
            built.append(config)

        def reset(self) -> None: ...

        def get_dispatch_collect(self) -> dict[str, Any]:
            return {}

    worker = object.__new__(ActorRolloutRefWorker)
    state = {"config": config, "role": "ref", "ref_worker_cls": Recorder, "set_dispatch_collect": lambda **_: None}
    worker.__dict__.update(state)
    worker.init_model()
    (training,) = built
    model = training.model_config
    assert (model.path, model.local_path, model.tokenizer_path) == (str(tmp_path / loaded),) * 3
    assert model.hf_config.hidden_size == {"student": 32, "teacher": 64}[loaded]
    assert not model.mtp.enable
    assert training.engine_config.infer_micro_batch_size_per_gpu == 3, "verl's own settings of the reference worker"
