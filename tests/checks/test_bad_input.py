"""The ``paced:`` block as people get it wrong: wrong types of every key, and values that cannot be meant.

Each case is one :class:`ConfigError` of one line that begins with the key as it is written, and has the words given.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import BaseModel

from paced_verl.advantage.config import AdvantageConfig
from paced_verl.config import ConfigError, PacedConfig

STAGE = {"until": 1.0, "divergence": "jsd", "responses": "student", "parameters": {"beta": 0.3}}
ENDPOINT = {"url": "https://host/v1", "model": "m"}
INNER = ("pydantic", "Input", "valid ", "dictionary", "instance", "tuple", "Config", "[key]", "str]", ":one", ":two")
"""What only pydantic says."""

NUMBER, WHOLE, FLAG = "expected a number", "expected a whole number", "expected true or false"
TEXT, CHOICE, BLOCK, LIST = "expected text", "expected '", "expected a block with the keys ", "expected a list"

# Every key there is; what a wrong type is told; whether null is right.
KEYS: dict[str, tuple[str, bool]] = {
    "weight": (BLOCK, False),
    "weight.kernel": (TEXT, False),
    "weight.alpha": (NUMBER, False),
    "weight.beta": (NUMBER, False),
    "weight.low": (NUMBER, False),
    "weight.high": (NUMBER, False),
    "weight.estimate": (CHOICE, False),
    "weight.prior": (LIST, True),
    "weight.prior.0": (NUMBER, False),
    "weight.fit": (CHOICE, True),
    "weight.source": (CHOICE, False),
    "pass_rate": (BLOCK, False),
    "pass_rate.samples": (WHOLE, False),
    "pass_rate.temperature": (NUMBER, False),
    "pass_rate.refresh": (CHOICE, False),
    "pass_rate.every_steps": (WHOLE, True),
    "pass_rate.ahead": (WHOLE, False),
    "pass_rate.max_age": (WHOLE, True),
    "pass_rate.teacher_samples": (WHOLE, True),
    "weight.teacher": (CHOICE, True),
    "weight.outcome": (BLOCK, True),
    "weight.outcome.correct": (NUMBER, False),
    "weight.outcome.wrong": (NUMBER, False),
    "pass_rate.at_end": (FLAG, False),
    "pass_rate.from_training": (FLAG, False),
    "pass_rate.decay": (NUMBER, False),
    "pass_rate.threshold": (NUMBER, False),
    "pass_rate.file": (TEXT, True),
    "sampler": (BLOCK, False),
    "sampler.policy": (TEXT, False),
    "sampler.power": (NUMBER, False),
    "sampler.explore": (NUMBER, False),
    "sampler.skip_zero_weight": (FLAG, False),
    "sampler.seed": (WHOLE, False),
    "schedule": (LIST, False),
    "schedule.0": (BLOCK, False),
    "schedule.0.until": ("expected a share of the run such as 0.5", False),
    "schedule.0.divergence": (TEXT, False),
    "schedule.0.divergence.from": (TEXT, False),
    "schedule.0.divergence.to": (TEXT, False),
    "schedule.0.divergence.over": (NUMBER, False),
    "schedule.0.responses": (CHOICE, False),
    "schedule.0.parameters": ("expected keys with values: {key: value}", False),
    "schedule.0.parameters.beta": (NUMBER, False),
    "schedule.0.lr_factor": (NUMBER, False),
    "schedule.0.coef": (NUMBER, False),
    "schedule.0.coef.from": (NUMBER, False),
    "schedule.0.coef.to": (NUMBER, False),
    "capability": (BLOCK, True),
    "capability.column": (TEXT, False),
    "capability.match": ("expected keys with values: {key: value}", True),
    "capability.requirement": ("expected keys with values: {key: value}", True),
    "capability.mix": ("expected keys with values: {key: value}", True),
    "capability.policy": (TEXT, False),
    "capability.every_steps": (WHOLE, False),
    "capability.budget": (WHOLE, True),
    "capability.probe": (BLOCK, True),
    "capability.probe.prompts": (WHOLE, False),
    "capability.probe.samples": (WHOLE, False),
    "capability.probe.score": (CHOICE, False),
    "capability.probe.sample_every": (WHOLE, False),
    "capability.curriculum": (BLOCK, True),
    "capability.curriculum.column": (TEXT, False),
    "capability.curriculum.by": (CHOICE, False),
    "capability.curriculum.order": (LIST, True),
    "capability.protect": (BLOCK, False),
    "capability.protect.top": (WHOLE, False),
    "capability.protect.beta": (NUMBER, False),
    "capability.floor": (NUMBER, False),
    "capability.trust": (NUMBER, False),
    "capability.confidence": (NUMBER, False),
    "capability.kappa": (NUMBER, False),
    "capability.warmup": (WHOLE, False),
    "teacher": (BLOCK, False),
    "teacher.backend": (CHOICE, False),
    "teacher.model": (CHOICE, True),
    "teacher.context": ("expected the name of a context, the path of a template, {teacher key: context}, or ", False),
    "teacher.context.data_source": ("expected keys with values: {key: value}", False),
    "teacher.context.data_source.gsm8k": (TEXT, False),
    "teacher.context.others": (TEXT, True),
    "teacher.solution_key": (TEXT, False),
    "teacher.topk": ("expected a number of tokens from 1 to 1048576, or full", False),
    "teacher.update": (CHOICE, False),
    "teacher.ema_decay": (NUMBER, True),
    "teacher.every_steps": (WHOLE, True),
    "targets": (BLOCK, False),
    "targets.column": (TEXT, True),
    "targets.file": (TEXT, True),
    "targets.keep": (CHOICE, False),
    "targets.attempts": (WHOLE, False),
    "targets.temperature": (NUMBER, False),
    "targets.top_p": (NUMBER, False),
    "targets.endpoint": (BLOCK, True),
    "targets.endpoint.url": (TEXT, False),
    "targets.endpoint.model": (TEXT, False),
    "targets.endpoint.api_key_env": (TEXT, False),
    "targets.endpoint.concurrency": (WHOLE, False),
    "targets.endpoint.retries": (WHOLE, False),
    "targets.endpoint.timeout": (NUMBER, False),
    "targets.endpoint.parameters": ("expected keys with values: {key: value}", False),
    "targets.endpoint.input_price": (NUMBER, False),
    "targets.endpoint.output_price": (NUMBER, False),
    "tokens": (BLOCK, False),
    "tokens.select": (TEXT, True),
    "tokens.keep": (NUMBER, False),
    "tokens.file": (TEXT, True),
    "route": (BLOCK, True),
    "route.mastered": (NUMBER, False),
    "route.hopeless": (NUMBER, False),
    "route.context": (TEXT, False),
    "alignment": (BLOCK, False),
    "alignment.questions": (WHOLE, False),
    "alignment.rollouts": (WHOLE, False),
    "alignment.nodes": (WHOLE, False),
    "alignment.visits": (WHOLE, False),
    "alignment.threshold": (NUMBER, False),
    "alignment.tokens": (WHOLE, False),
    "alignment.support": (CHOICE, False),
    "alignment.divergence": (LIST, False),
    "alignment.divergence.0": (TEXT, False),
    "alignment.contexts": (LIST, False),
    "alignment.contexts.0": (TEXT, False),
    "alignment.nulls": (LIST, False),
    "alignment.nulls.0": (TEXT, False),
    "alignment.truncated": (CHOICE, False),
    "alignment.every_steps": (WHOLE, True),
    "alignment.budget": (BLOCK, False),
    "alignment.budget.rollouts": (WHOLE, True),
    "alignment.budget.tokens": (WHOLE, True),
    "alignment.budget.minutes": (NUMBER, True),
    "alignment.budget.half_width": (NUMBER, True),
    "strict": (FLAG, False),
}
ADVANTAGE_KEYS = {
    **{key.removeprefix("weight."): KEYS[key] for key in KEYS if key.startswith("weight.")},
    "threshold": (NUMBER, False),
    "mean_weight": (NUMBER, True),
    "task_coef": (NUMBER, False),
    "strict": (FLAG, False),
}
for _key in ("fit", "source", "teacher", "outcome", "outcome.correct", "outcome.wrong"):
    del ADVANTAGE_KEYS[_key]

WRONG: dict[str, tuple[Any, ...]] = {
    NUMBER: (True, "1", "x", "", [], [1.0], 10**400),
    WHOLE: (True, "1", "", 1.5, 8.0, [], {"a": 1}, math.inf, math.nan),
    FLAG: (1, 0, 1.0, "true", "yes", "", [], {"a": 1}),
    TEXT: (1, 1.5, True, []),
    CHOICE: (1, True, "", "Zzz", [], {"a": 1}),
    BLOCK: (1, 1.5, True, "x", "", [], [1]),
    LIST: (1, True, "x", "", {"a": 1}),
}
WRONG_HERE: dict[str, tuple[Any, ...]] = {
    "schedule.0.until": (True, "1", "", [], {"a": 1}, None),
    "schedule.0.parameters": (1, True, "x", [], None),
    "targets.endpoint.parameters": (1, True, "x", [], None),
    "capability.match": (1, True, "x", []),
    "capability.requirement": (1, True, "x", []),
    "capability.mix": (1, True, "x", []),
    "teacher.topk": (True, False, 0, -1, 1.5, 64.0, "64", "all", "", 10**30, math.nan, [], {"a": 1}, None),
    "teacher.context.data_source": (1, True, "x", "none", [], None),
    "teacher.context": (1, True, "", " ", [], ["solution"], {}, {"a": 1}, {"a": ""}, {1: "solution"}, {"": "none"}),
}


def block_with(key: str, value: Any) -> dict[str, Any]:
    """A right block but for one key, by its dotted path; what stands around it is there."""
    block: dict[str, Any] = {"schedule": [copy.deepcopy(STAGE)]}
    if key.startswith("targets.endpoint."):
        block["targets"] = {"endpoint": dict(ENDPOINT)}
    if key.startswith("capability.curriculum."):
        block["capability"] = {"curriculum": {"column": "level"}}
    if key.startswith("teacher.context."):
        block["teacher"] = {"context": {"data_source": {"gsm8k": "none"}}}
    if key.startswith("weight.prior."):
        block["weight"] = {"estimate": "posterior", "prior": [1.0, 1.0]}
    if key.startswith("alignment.") and key.endswith(".0"):
        block["alignment"] = {key.split(".")[1]: [""]}
    if key.startswith("schedule.0.divergence."):
        block["schedule"][0] |= {"divergence": {"from": "forward_kl", "to": "reverse_kl"}, "parameters": {}}
    if key.startswith("schedule.0.coef."):
        block["schedule"][0]["coef"] = {"from": 1.0, "to": 0.5}
    place: Any = block
    *path, last = (int(part) if part.isdigit() else part for part in key.split("."))
    for part in path:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    place[last] = value
    return block


def refused(block: Any) -> str:
    with pytest.raises(ConfigError) as error:
        PacedConfig.parse(block)
    message = str(error.value)
    assert not [word for word in INNER if word in message], message
    assert not [line for line in message.splitlines() if line[-1] not in ".?" or line[-2] in ".?"], message
    return message


def typed_wrong(keys: dict[str, tuple[str, bool]]) -> Iterator[Any]:
    for key, (words, nullable) in keys.items():
        values = WRONG_HERE.get(key) or (WRONG[words] + (() if nullable else (None,)))
        for value in values:
            yield pytest.param(key, value, words, id=f"{key}={str(value)[:20]}")


@pytest.mark.parametrize(("key", "value", "words"), typed_wrong(KEYS))
def test_a_value_of_a_wrong_type_is_one_line_that_names_key_value_and_type(key: str, value: Any, words: str) -> None:
    message = refused(block_with(key, value))
    assert message.startswith(f"paced.{key}"), message
    assert words in message
    assert len(message.splitlines()) == 1
    if not isinstance(value, dict):
        shown = (
            {None: "null", True: "true", False: "false"}[value]
            if value in (None,) or value is True or value is False
            else repr(value)
        )
        assert f"paced.{key}={shown[:200]}" in message


@pytest.mark.parametrize(("key", "value", "words"), typed_wrong(ADVANTAGE_KEYS))
def test_so_is_one_of_the_advantage(key: str, value: Any, words: str) -> None:
    block = block_with(f"weight.{key}", value)["weight"]
    with pytest.raises(ConfigError) as error:
        AdvantageConfig.of(OmegaConf.create({"paced": block}, flags={"allow_objects": True}))
    message = str(error.value)
    assert message.startswith(f"algorithm.paced.{key}"), message
    assert words in message
    assert len(message.splitlines()) == 1


def names(model: type[BaseModel], around: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{around}{field.alias or name}"
        yield key
        for below in _models(field.annotation):
            yield from names(below, f"{key}." if key != "schedule" else "schedule.0.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models(part)


def test_no_key_is_left_out_here() -> None:
    lists = {f"alignment.{name}.0" for name in ("divergence", "contexts", "nulls")}
    of_a_source = "teacher.context.data_source.gsm8k"
    below = {"schedule.0", "schedule.0.parameters.beta", "weight.prior.0", of_a_source, *lists}
    assert set(KEYS) - below == set(names(PacedConfig))
    assert set(ADVANTAGE_KEYS) - {"prior.0"} == set(names(AdvantageConfig))


INF, NAN = math.inf, math.nan
FINITE, BLANK, ADDRESS = (
    "expected a finite number",
    "expected text, not nothing",
    "expected an address such as https://",
)


@pytest.mark.parametrize(
    "key", [key for key, (words, _) in KEYS.items() if words == NUMBER and not key.endswith((".coef.from", ".coef.to"))]
)
@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_no_number_is_infinite_or_none(key: str, value: float) -> None:
    message = refused(block_with(key, value))
    assert message == f"paced.{key}={value!r}: {FINITE}."


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("sampler.seed", -1, "greater than or equal to 0"),
        ("sampler.seed", 99999999999999999999, "less than 9223372036854775808"),
        ("sampler.power", -0.1, "greater than or equal to 0"),
        ("sampler.power", 1e9, "less than or equal to 10"),
        ("sampler.explore", 1.01, "less than or equal to 1"),
        ("pass_rate.samples", 0, "greater than or equal to 1"),
        ("pass_rate.samples", 1000000000, "less than or equal to 1024"),
        ("pass_rate.temperature", -1, "greater than or equal to 0"),
        ("pass_rate.temperature", 1e6, "less than or equal to 10"),
        ("pass_rate.decay", 0, "greater than 0"),
        ("pass_rate.decay", 1.5, "less than or equal to 1"),
        ("pass_rate.every_steps", 0, "greater than or equal to 1"),
        ("pass_rate.every_steps", 10**30, "less than or equal to 1000000000"),
        ("pass_rate.file", "", BLANK),
        ("pass_rate.file", "  ", BLANK),
        ("pass_rate.refresh", "stages", "'start', 'stage', 'every', 'draw' or 'never'"),
        ("pass_rate.ahead", 0, "greater than or equal to 1"),
        ("pass_rate.ahead", 3, "ahead goes with refresh: draw"),
        ("pass_rate.max_age", 5, "max_age goes with refresh: draw"),
        ("weight.alpha", -1, "greater than or equal to 0"),
        ("weight.beta", 1e300, "less than or equal to 30"),
        ("weight.low", 2, "less than or equal to 1"),
        ("weight.kernel", "", BLANK),
        ("weight.kernel", "Beta", "Did you mean 'beta'?"),
        ("weight.kernel", "softmax", "Choose from: beta, hard_filter, uniform"),
        ("weight.prior", [1.0], "paced.weight.prior.1 is missing"),
        ("weight.prior", [], "paced.weight.prior.0 is missing"),
        ("weight.prior", [1.0, 1.0, 1.0], "expected a list of 2"),
        ("weight.prior", [1, 1e308], "less than or equal to 10000"),
        ("weight.prior", [0, 1], "greater than or equal to 0.001"),
        ("schedule.0.lr_factor", 1e300, "less than or equal to 1000000"),
        ("schedule.0.lr_factor", 0, "greater than or equal to 0.000001"),
        ("schedule.0.coef", -1, "greater than or equal to 0"),
        ("schedule.0.coef", 1e300, "less than or equal to 1000000"),
        ("schedule.0.coef", 0, "plain RL"),
        ("schedule.0.coef", {"from": 0, "to": 0}, "plain RL"),
        ("schedule.0.coef", {"from": 1}, "paced.schedule.0.coef.to is missing"),
        ("schedule.0.coef", {"start": 1, "end": 2}, "paced.schedule.0.coef.start is not a key that anything reads"),
        ("schedule.0.coef", {"from": 1, "to": INF}, FINITE),
        ("schedule.0.until", 0.0, "a fraction of the run lies in (0, 1]"),
        ("schedule.0.until", 2.0, "a number of steps is written without a decimal point"),
        ("schedule.0.until", INF, "a fraction of the run lies in (0, 1]"),
        ("schedule.0.until", NAN, "a fraction of the run lies in (0, 1]"),
        ("schedule.0.until", 0, "step 1 or later"),
        ("schedule.0.until", -3, "step 1 or later"),
        ("schedule.0.divergence", "", BLANK),
        ("schedule.0.divergence", "reverse-kl", "Did you mean 'reverse_kl'?"),
        ("schedule.0.divergence", {}, "paced.schedule.0.divergence.from is missing"),
        ("schedule.0.divergence.to", "jds", "Did you mean 'jsd'?"),
        ("schedule.0.divergence.over", 0, "greater than 0"),
        ("schedule.0.parameters", {"alpha": 0.5}, "does not take parameters"),
        ("schedule.0.parameters", {"student": 0.5}, "does not take parameters"),
        ("schedule.0.parameters", {1: 0.5}, "paced.schedule.0.parameters.1=1: expected text"),
        ("schedule.0.parameters.beta", 1.0, "0 < beta < 1"),
        ("schedule", [], "expected a list of 1 or more"),
        ("schedule", None, LIST),
        ("teacher.contxt", "solution", "Did you mean 'context'?"),
        ("teacher.context.data_source", {}, "expected keys with values, one at least"),
        ("teacher.context.data_source", {"gsm8k": "solutions"}, "there is no such file"),
        ("teacher.context.data_source", {"gsm8k": "two_rollouts"}, "only `paced-verl align` has"),
        ("teacher.context.data_source", {1: "solution"}, "expected text"),
        ("teacher.context.data_source", {" ": "solution"}, "expected text, not nothing"),
        ("teacher.context.others", "", BLANK),
        ("teacher.context.others", "two_rollouts", "only `paced-verl align` has"),
        (
            "teacher.context.other",
            "none",
            "paced.teacher.context.other is not a key that anything reads. Did you mean 'others'?",
        ),
        ("teacher.context", {"others": "none", "gsm8k": "solutions"}, "there is no such file"),
        ("teacher.ema_decay", 1, "less than 1"),
        ("teacher.ema_decay", -0.1, "greater than or equal to 0"),
        ("teacher.every_steps", 0, "greater than or equal to 1"),
        ("teacher.solution_key", "", BLANK),
        ("teacher.solution_key", " ", BLANK),
        ("teacher.topk", "full", "for backend: reference"),
        ("teacher.update", "ema", "needs ema_decay"),
        ("targets.attempts", 0, "greater than or equal to 1"),
        ("targets.attempts", 10**9, "less than or equal to 1000"),
        ("targets.temperature", 1e6, "less than or equal to 10"),
        ("targets.top_p", 0, "greater than 0"),
        ("targets.column", "", BLANK),
        ("targets.file", "", BLANK),
        ("targets.endpoint", {}, "paced.targets.endpoint.url is missing"),
        ("targets.endpoint.url", "", ADDRESS),
        ("targets.endpoint.url", "host/v1", ADDRESS),
        ("targets.endpoint.url", "ftp://host", ADDRESS),
        ("targets.endpoint.url", "https://", ADDRESS),
        ("targets.endpoint.url", "https://x y", ADDRESS),
        ("targets.endpoint.model", "", BLANK),
        ("targets.endpoint.api_key_env", "", BLANK),
        ("targets.endpoint.concurrency", 0, "greater than or equal to 1"),
        ("targets.endpoint.concurrency", 10**9, "less than or equal to 10000"),
        ("targets.endpoint.retries", -1, "greater than or equal to 0"),
        ("targets.endpoint.retries", 10**9, "less than or equal to 100"),
        ("targets.endpoint.timeout", 0, "greater than 0"),
        ("targets.endpoint.timeout", 1e9, "less than or equal to 86400"),
        ("targets.endpoint.parameters", {1: 2}, "expected text"),
        ("targets.endpoint.input_price", -1, "greater than or equal to 0"),
        ("tokens.keep", 0, "greater than 0"),
        ("tokens.select", "tips", "'tip'"),
        ("sampler.policy", "pass_rates", "Did you mean 'pass_rate'?"),
        ("sampler.policy", "", BLANK),
        ("route", {"mastered": 0.1, "hopeless": 0.5}, "hopeless=0.5 must be below mastered=0.1"),
        ("route.context", "none", "hopeless prompts need more"),
        ("route.context", "solutions", "there is no such file"),
        ("alignment.every_steps", 0, "greater than or equal to 1"),
        ("alignment.every_steps", 4, "it needs budget.rollouts, such as 1000"),
        ("zzz", [], "Choose from: weight, pass_rate"),
        ("shedule", [], "Did you mean 'schedule'?"),
    ],
)
def test_a_value_that_cannot_be_meant_is_one_line(key: str, value: Any, words: str) -> None:
    message = refused(block_with(key, value))
    around = key if "paced." in words else key.removesuffix(".beta").removesuffix(".to")
    assert message.startswith(("paced.", f"paced.{around}"))
    assert words in message, message
    assert len([line for line in message.splitlines() if words in line]) == 1
    assert key.split(".")[0] in message


@pytest.mark.parametrize("block", [None, 3, True, "two_stage", [], [{"schedule": []}]])
def test_a_block_that_is_none(block: Any) -> None:
    assert "paced" in refused(block)
    assert "expected a block with the keys weight, pass_rate, sampler, schedule" in refused(block)
    with pytest.raises(ConfigError, match=r"^algorithm\.paced=.*: expected a block with the keys kernel, alpha"):
        AdvantageConfig.of(OmegaConf.create({"paced": block}))


def test_an_advantage_without_a_block_has_the_defaults() -> None:
    assert AdvantageConfig.of(OmegaConf.create({})) == AdvantageConfig()


@pytest.mark.parametrize(
    ("value", "words"),
    [("${nothing.there}", "nothing.there"), ("???", "weight.alpha"), ("${oc.env:NO_SUCH}", "NO_SUCH")],
)
def test_a_reference_to_nothing(value: str, words: str) -> None:
    config = OmegaConf.create({"paced": {"weight": {"alpha": value}, "schedule": [STAGE]}})
    assert words in refused(config.paced)


def test_several_problems_are_a_line_each_and_a_wrong_stage_is_not_called_a_missing_one() -> None:
    lines = refused({"schedule": [STAGE | {"until": "x"}], "weight": {"prior": [1, 1, 1]}, "tokens": 3}).splitlines()
    assert sorted(line.split("=")[0] for line in lines) == [
        "paced.schedule.0.until",
        "paced.tokens",
        "paced.weight.prior",
    ]


def test_a_value_of_many_lines_stays_on_one() -> None:
    assert len(refused(block_with("weight.kernel", "a\nb" * 1000)).splitlines()) == 1
    assert len(refused(block_with("weight", ["x" * 100_000]))) < 1000


@pytest.mark.parametrize("route", [False, True])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{{ problem }}\n{{ solution", "line 2: unexpected end of template"),
        (b"{{ problem }}\n{{ solutoin }}", "line 2: 'solutoin' is undefined. Did you mean 'solution'?"),
        (b"{{ problem | shout }}", "line 1: there is no filter 'shout'"),
        (b"", "the file is empty"),
        (b"{# problem #}", "it shows nothing of the row"),
        ("{{ problem }} \u00e9".encode("latin-1"), "UTF-8"),
        ("{{ problem }}".encode("utf-16"), "UTF-8"),
    ],
)
def test_a_template_is_read_with_the_block(tmp_path: Path, content: bytes, words: str, route: bool) -> None:
    template = tmp_path / "mine.jinja"
    template.write_bytes(content)
    for context in (str(template),) if route else (str(template), {"math": "solution", "code": str(template)}):
        message = refused(block_with("route.context" if route else "teacher.context", context))
        assert message.startswith("paced.route.context" if route else "paced.teacher.context")
        assert str(template) in message
        assert words in message
        assert len(message.splitlines()) == 1


@pytest.mark.parametrize("context", ["no/such.jinja", "Solve {{ problem }} " * 100, "a\0b", "{folder}"])
def test_a_template_that_is_no_file(tmp_path: Path, context: str) -> None:
    message = refused(block_with("teacher.context", context.replace("{folder}", str(tmp_path))))
    assert "there is no such file" in message
    assert "none, solution, answer, rollout" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weight.alpha", 1),
        ("weight.beta", 0),
        ("weight", {"estimate": "posterior", "prior": [1, 2]}),
        ("pass_rate.threshold", -1),
        ("pass_rate.temperature", 0),
        ("sampler.seed", 2**63 - 1),
        ("sampler.power", 1),
        ("schedule.0.until", 10),
        ("schedule.0.coef", {"from": 0, "to": 1}),
        ("schedule.0.coef", {"from": 1, "to": 0}),
        ("schedule.0.lr_factor", 1),
        ("teacher.context", {"math": "solution", "code": "none"}),
        ("teacher.context", {"data_source": {"openai/gsm8k": "solution", "code.v1": "none"}}),
        ("teacher.context", {"data_source": {"gsm8k": "solution"}, "others": "none"}),
        ("teacher.context", {"others": "solution", "code": "none"}),
        ("targets.endpoint", ENDPOINT | {"timeout": 5, "parameters": {"max_tokens": None, "seed": 3}}),
        ("route", {}),
        ("alignment", {"every_steps": 4, "budget": {"rollouts": 500}}),
    ],
)
def test_what_is_right_is_taken(key: str, value: Any) -> None:
    PacedConfig.parse(block_with(key, value))
    PacedConfig.parse(OmegaConf.create({"paced": block_with(key, value)}).paced)
