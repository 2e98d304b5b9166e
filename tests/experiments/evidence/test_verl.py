"""The verl half: an arm on verl's command line is the arm of the plain half."""

from __future__ import annotations

import pytest

from paced_verl.config import PacedConfig
from paced_verl.launch.hydra import compose
from scripts.experiments.evidence import in_verl
from scripts.experiments.evidence.arms import ARMS


@pytest.mark.parametrize("name", sorted({arm for arms in in_verl.COMPARED.values() for arm in arms}))
def test_overrides_are_the_arms_block(name: str) -> None:
    config = compose(["+paced=two_stage", *in_verl.overrides(ARMS[name])])
    there = PacedConfig.parse(config.paced)
    stages = [{"until": 1.0, "divergence": "reverse_kl", "responses": "student"}]
    wanted = PacedConfig.parse({"schedule": stages} | ARMS[name].block)
    assert (there.weight, there.sampler, there.pass_rate) == (wanted.weight, wanted.sampler, wanted.pass_rate)
    assert there.targets.keep == ("correct" if ARMS[name].keep_correct else "all")


def test_half_of_the_prompts_are_what_the_student_has_never_seen() -> None:
    for preset in in_verl.PRESETS.values():
        assert preset.turns == ("spell_backward", "chain_sum")
        assert set(preset.student.seen or {}) == {"spell_backward"}
    wrong, right = (in_verl.PRESETS[regime] for regime in (in_verl.R2, in_verl.R3))
    assert set(wrong.teacher.seen or {}) == {"spell_backward"}
    assert right.teacher.seen is None
    assert wrong.held_out == ("spell_backward",)


def test_what_has_a_row_is_not_run_again_and_what_is_left_goes_arm_by_arm() -> None:
    everything = in_verl.todo([])
    assert len(set(everything)) == len(everything)
    assert {regime for regime, _, _ in everything} == set(in_verl.PRESETS)
    first, *rest = everything
    row = dict(zip(("regime", "seed", "arm"), first, strict=True))
    assert in_verl.todo([row]) == rest
    places = {}
    for position, (regime, seed, arm) in enumerate(everything):
        (seeds,) = (seeds for seeds in in_verl.COMPARED if seed in seeds)
        places.setdefault((seeds, arm), []).append((position, regime, seed))
    for group in places.values():
        positions = [position for position, *_ in group]
        assert positions == [*range(positions[0], positions[0] + 10)], "no other arm between them"


def test_every_arm_has_five_seeds_that_uniform_has_too() -> None:
    seeds: dict[str, set[int]] = {}
    for _, seed, arm in in_verl.todo([]):
        seeds.setdefault(arm, set()).add(seed)
    for arm, those in seeds.items():
        assert those <= seeds["uniform"]
        assert len(those) == (5 * len(in_verl.COMPARED) if arm == "uniform" else 5)
