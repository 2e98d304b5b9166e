from __future__ import annotations

from typing import Any

import pytest

from paced_verl.config import ConfigError, PacedConfig

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
