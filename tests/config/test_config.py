from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

import paced_verl
from paced_verl.advantage.config import AdvantageConfig
from paced_verl.config import ConfigError, PacedConfig
from paced_verl.pacing.kernel import Kernel

GROUPS = Path(paced_verl.__file__).parent / "configs" / "paced"

STAGES = [
    {"until": 0.5, "divergence": "forward_kl", "responses": "teacher"},
    {"until": 1.0, "divergence": "reverse_kl", "responses": "student"},
]


def parse(**block: Any) -> PacedConfig:
    return PacedConfig.parse({"schedule": STAGES, **block})


def test_defaults_are_the_papers() -> None:
    paced = parse()
    assert (paced.weight.kernel, paced.weight.alpha, paced.weight.beta, paced.weight.estimate) == (
        "beta",
        1,
        1,
        "empirical",
    )
    assert (paced.pass_rate.samples, paced.pass_rate.temperature, paced.sampler.power) == (8, 1.0, 0.0)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"weigth": {}}, ["paced.weigth", "Did you mean 'weight'"]),
        ({"weight": {"alhpa": 1}}, ["paced.weight.alhpa", "Did you mean 'alpha'"]),
        ({"weight": {"zzz": 1}}, ["paced.weight.zzz", "Choose from", "kernel"]),
        ({"schedule": [STAGES[0] | {"div": "x"}]}, ["paced.schedule.0.div"]),
        ({"weight": {"alpha": -1}}, ["paced.weight.alpha=-1", "greater than or equal to 0"]),
        ({"weight": {"kernel": "betta"}}, ["betta", "Did you mean 'beta'"]),
        ({"weight": {"low": 0.9, "high": 0.1}}, ["low=0.9", "high=0.1"]),
        ({"weight": {"prior": [1, 1]}}, ["prior", "estimate: posterior"]),
        ({"weight": {"kernel": "uniform", "fit": "moments"}}, ["moments", "kernel: beta"]),
        ({"pass_rate": {"samples": 0}}, ["paced.pass_rate.samples=0"]),
        ({"pass_rate": {"refresh": "every"}}, ["every_steps"]),
        ({"pass_rate": {"refresh": "start", "every_steps": 5}}, ["every_steps"]),
        ({"pass_rate": {"refresh": "never", "from_training": False}}, ["needs a file"]),
        ({"weight": {"teacher": "gate", "source": "group"}}, ["source: table"]),
        (
            {"weight": {"teacher": "gate"}, "schedule": [STAGES[0] | {"responses": "student", "until": 1.0}]},
            ["teacher_samples", "targets.file"],
        ),
        ({"pass_rate": {"refresh": "draw"}, "sampler": {"explore": 0.1}}, ["power: 0", "max_age"]),
        ({"sampler": {"explore": 1.5}}, ["paced.sampler.explore=1.5"]),
        ({"schedule": []}, ["paced.schedule"]),
        ({"schedule": [STAGES[0] | {"until": 1.5}]}, ["until=1.5", "fraction"]),
        ({"schedule": [STAGES[0] | {"until": 0}]}, ["until=0", "step 1 or later"]),
        ({"schedule": [STAGES[0] | {"divergence": "forwardkl"}]}, ["forwardkl", "forward_kl"]),
        ({"schedule": [STAGES[0] | {"parameters": {"betta": 3}}]}, ["forward_kl does not take", "betta"]),
        ({"schedule": [STAGES[0] | {"divergence": "jsd", "parameters": {"beta": 2}}]}, ["0 < beta < 1", "2"]),
        ({"schedule": [STAGES[0] | {"responses": "both"}]}, ["responses='both'", "teacher"]),
        ({"teacher": {"context": "no/such/file.jinja"}}, ["no/such/file.jinja", "solution"]),
        ({"targets": {"keep": "some"}}, ["paced.targets.keep='some'"]),
    ],
)
def test_a_wrong_value_names_key_value_and_what_is_expected(block: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse(**block)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("rates", "silent"),
    [
        ({"refresh": "never"}, True),
        ({"refresh": "start", "file": "t.parquet"}, True),
        ({"refresh": "stage", "file": "t.parquet"}, True),
        ({"refresh": "stage"}, False),
        ({"refresh": "every", "every_steps": 5, "file": "t.parquet"}, False),
        ({"refresh": "draw", "file": "t.parquet"}, False),
    ],
)
def test_a_teacher_that_would_never_be_judged_is_refused(rates: dict[str, Any], silent: bool) -> None:
    block: dict[str, Any] = {"weight": {"teacher": "gate"}, "pass_rate": rates | {"teacher_samples": 4}}
    block |= {"sampler": {"explore": 0.1, "power": 1.0}, "schedule": STAGES[1:]}
    if silent:
        with pytest.raises(ConfigError, match=r"teacher_samples: 4 .* refresh: (never|start|stage)"):
            parse(**block)
    else:
        assert parse(**block).pass_rate.teacher_samples == 4


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse(weight={"alpha": -1, "nothing": 2}, pass_rate={"samples": 0})
    assert len(str(error.value).splitlines()) == 3


def test_a_schedule_that_leaves_steps_without_a_stage_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="ends at step 5, but the run has 10 steps"):
        PacedConfig.parse({"schedule": STAGES[:1]}).build_schedule(10)


NEVER = {"refresh": "never"}
POSTERIOR = {"estimate": "posterior"}


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"sampler": {"power": 1.0, "skip_zero_weight": False}},
        {"weight": {"kernel": "hard_filter"}},
        {"weight": {"alpha": 0}},
    ],
)
def test_a_prompt_is_not_dropped_for_ever_because_of_one_visit(block: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        parse(pass_rate=NEVER, **block)
    for word in ("refresh: never", "weight.estimate: posterior", "sampler.explore", "rollout.n"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    "block",
    [
        {"weight": POSTERIOR},
        {"weight": POSTERIOR, "sampler": {"power": 1.0}},
        {"weight": POSTERIOR | {"kernel": "hard_filter"}},
        {"sampler": {"explore": 0.1}},
        {"sampler": {"power": 0.5, "explore": 0.1}},
        {"sampler": {"skip_zero_weight": False}},
        {"weight": {"kernel": "uniform"}},
        {"weight": {"alpha": 0, "beta": 0}},
        {"weight": {"kernel": "hard_filter", "low": 0, "high": 1}},
        {"weight": {"source": "group"}},
        {"pass_rate": NEVER | {"file": "table.parquet"}},
        {"pass_rate": {"refresh": "start"}},
        {"schedule": [STAGES[0] | {"until": 1.0}]},
    ],
)
def test_what_measures_a_prompt_again_or_never_drops_one_is_accepted(block: dict[str, Any]) -> None:
    parse(**({"pass_rate": NEVER} | block))


def types(tree: Any) -> Any:
    """The tree with every value beside its type, since 1 equals 1.0 and true. YAML has lists where we have tuples."""
    if isinstance(tree, tuple | list):
        return [types(value) for value in tree]
    return {key: types(value) for key, value in tree.items()} if isinstance(tree, dict) else (type(tree), tree)


@pytest.mark.parametrize(
    ("group", "key", "defaults"),
    [
        ("base", "paced", PacedConfig.parse({"schedule": STAGES}).model_dump(exclude={"schedule"})),
        ("advantage", "algorithm.paced", AdvantageConfig().model_dump()),
    ],
)
def test_the_defaults_of_the_yaml_are_those_of_the_library(group: str, key: str, defaults: dict[str, Any]) -> None:
    config = OmegaConf.load(GROUPS / f"{group}.yaml")
    assert isinstance(config, DictConfig)
    assert types(OmegaConf.to_container(OmegaConf.select(config, key))) == types(defaults)


@pytest.mark.parametrize("group", ["base", "advantage"])
def test_every_key_of_the_yaml_is_explained(group: str) -> None:
    lines = (GROUPS / f"{group}.yaml").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip() == "paced:" and "_target_" not in lines[i + 1])
    margin = lines[start].index("paced:")
    inside = [line for line in lines[start + 1 :] if line.strip()]
    keys = []
    for before, line in zip([lines[start], *inside], inside, strict=False):
        if not line.startswith(" " * (margin + 2)):
            break
        if re.fullmatch(r" +\w+: .+", line):
            keys.append(line.split(":")[0].strip())
            together = keys[-1] in ("beta", "high", "top_p")  # explained with the key before
            assert before.strip().startswith("# ") or together, line
    assert len(keys) >= 10


@pytest.mark.parametrize("prior", [(1e-3, 1e-3), (1e-3, 1e4), (1e4, 1e-3), (1e4, 1e4)])
@pytest.mark.parametrize("exponents", [(0.0, 0.0), (1.0, 1.0), (30.0, 0.0), (30.0, 30.0)])
def test_the_posterior_is_a_number_at_the_ends_of_what_is_accepted(
    prior: tuple[float, float], exponents: tuple[float, float]
) -> None:
    """Against products: E[p^α (1−p)^β] = Π_{i<α} (a+i) · Π_{j<β} (b+j) / Π_{l<α+β} (a+b+l) for whole α, β."""
    alpha, beta = exponents
    weight = {"estimate": "posterior", "prior": list(prior), "alpha": alpha, "beta": beta}
    kernel = parse(weight=weight, pass_rate={"samples": 1024}).weight.to_kernel()
    k, n = np.array([0, 1, 512, 1024]), np.full(4, 1024)
    a, b = prior[0] + k, prior[1] + n - k

    def rising(x: Any, count: float) -> Any:
        return np.log(x[:, None] + np.arange(int(count))).sum(1)

    expected = rising(a, alpha) + rising(b, beta) - rising(a + b, alpha + beta)
    np.testing.assert_allclose(np.log(kernel(k, n)), expected, rtol=1e-6, atol=1e-6)
    for name in ("hard_filter", "uniform"):
        assert np.isfinite(Kernel(name, estimate="posterior", prior=prior)(k, n)).all()


def test_what_kernels_have_in_common_is_the_same_in_both_blocks() -> None:
    settings = {"kernel": "hard_filter", "low": 0.1, "high": 0.9, "estimate": "posterior", "prior": [2, 3]}
    kernels = [parse(weight=settings).weight.to_kernel(), AdvantageConfig.read(settings, "algorithm.paced").to_kernel()]
    assert kernels == [Kernel("hard_filter", low=0.1, high=0.9, estimate="posterior", prior=(2.0, 3.0))] * 2
