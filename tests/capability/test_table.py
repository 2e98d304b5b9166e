import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paced_verl.capability.table import Capabilities, Rule, levels, read_rules, shared
from paced_verl.errors import PacedError

SOURCES = ["gsm8k", "mbpp", "gsm8k", "dapo", "humaneval", "mbpp"]
RULES = {
    "maths": Rule(match=("gsm8k", "dapo"), probe=2, teacher="big"),
    "code": Rule(match=("mbpp", "humaneval"), probe=1),
}


def chat(text):
    return [{"role": "user", "content": text}]


def test_each_value_is_a_capability_by_default():
    capabilities = Capabilities.read(SOURCES)
    assert capabilities.names == ("dapo", "gsm8k", "humaneval", "mbpp")
    np.testing.assert_array_equal(capabilities.groups, [1, 3, 1, 0, 2, 3])
    assert capabilities.groups.dtype == np.int16
    np.testing.assert_array_equal(capabilities.sizes, [1, 2, 1, 2])
    assert capabilities.teachers == (None,) * 4


def test_a_capability_may_be_several_values():
    capabilities = Capabilities.read(SOURCES, rules=RULES)
    assert capabilities.names == ("maths", "code")
    np.testing.assert_array_equal(capabilities.groups, [0, 1, 0, 0, 1, 1])
    assert capabilities.teachers == ("big", None)
    assert capabilities.wanted == (2, 1)


@pytest.mark.parametrize(
    "values",
    [
        np.array(SOURCES),
        pa.array(SOURCES),
        pa.chunked_array([SOURCES[:2], SOURCES[2:]]),
        pa.chunked_array([pa.array(SOURCES[:2]).dictionary_encode(), pa.array(SOURCES[2:]).dictionary_encode()]),
        pa.array(SOURCES, pa.large_string()),
        pa.array([*SOURCES, "left out"]).dictionary_encode()[: len(SOURCES)],
    ],
)
def test_a_column_comes_in_any_form(values):
    assert Capabilities.read(values).names == ("dapo", "gsm8k", "humaneval", "mbpp")
    np.testing.assert_array_equal(Capabilities.read(values, rules=RULES).groups, [0, 1, 0, 0, 1, 1])


def test_numbers_match_as_they_are_written(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text("easy: {match: [1, 2]}\nhard: {match: ['3']}")
    np.testing.assert_array_equal(Capabilities.read([3, 1, 2], "level", read_rules(file)).groups, [1, 0, 0])


def test_the_order_of_rows_does_not_name_capabilities():
    first, second = Capabilities.read(SOURCES), Capabilities.read(SOURCES[::-1])
    assert first.names == second.names
    np.testing.assert_array_equal(first.groups, second.groups[::-1])


@pytest.mark.parametrize(
    ("values", "rules", "message"),
    [
        (
            [*SOURCES, "mmlu", None, "mmlu"],
            RULES,
            r"3 of 9 training prompts match no capability: their column data_source has 'mmlu' \(2\), nothing \(1\); "
            r"the first is row 6.*maths, code",
        ),
        (SOURCES, RULES | {"all": Rule(match=("mbpp",))}, "'code' and 'all' both match 'mbpp'.*leave it to one"),
        (
            SOURCES,
            RULES | {"words": Rule()},
            r"capability 'words' has no prompts: none has 'words' in the column data_source.*dapo, gsm8k",
        ),
        ([None, "a"], None, r"1 of 2 training prompts match no capability.*nothing \(1\)"),
        ([None, None], None, "data_source has 0 values"),
        (list(range(1001)), None, "has 1,001 values.*Name another column"),
    ],
)
def test_what_is_wrong_with_capabilities_is_said(values, rules, message):
    with pytest.raises(PacedError, match=message):
        Capabilities.read(values, rules=rules)


def test_names_are_looked_up():
    capabilities = Capabilities.read(SOURCES, rules=RULES)
    np.testing.assert_array_equal(capabilities.vector({"code": 0.25, "maths": 0.75}), [0.75, 0.25])
    np.testing.assert_array_equal(capabilities.vector({"code": 1}), [0, 1])
    with pytest.raises(PacedError, match=r"no capability 'math'\. Did you mean 'maths'"):
        capabilities.vector({"math": 1})


# ---------------------------------------------------------------------- the file


def test_a_file_of_rules(tmp_path):
    file = tmp_path / "capabilities.yaml"
    file.write_text("maths: {match: [gsm8k, dapo], probe: 2, teacher: big}\ncode: {match: [mbpp, humaneval]}\nmmlu:\n")
    assert read_rules(file) == {"maths": RULES["maths"], "code": Rule(match=("mbpp", "humaneval")), "mmlu": Rule()}
    assert Rule().probe == 128


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("maths: {match: [a", "cannot be read as YAML"),
        ("- a\n- b", "expected capabilities by name"),
        ("", "expected capabilities by name"),
        ("maths: {math: [a]}", r"maths\.math: not a key of a capability\. Did you mean 'match'"),
        ("maths: {match: []}", r"maths\.match: .*at least 1 item.*got"),
        ("maths: {match: a}", r"maths\.match: .*got 'a'"),
        ("maths: {match: [a], probe: 0}", r"maths\.probe: expected greater than or equal to 1, got 0"),
        ("maths: {match: [a], probe: many}", r"maths\.probe: expected a valid integer, got 'many'"),
        ("maths: [a, b]", "maths: "),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, message):
    file = tmp_path / "capabilities.yaml"
    file.write_text(text)
    with pytest.raises(PacedError, match=message) as error:
        read_rules(file)
    assert str(error.value).startswith(str(file))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(PacedError, match=r"none\.yaml: cannot be read"):
        read_rules(tmp_path / "none.yaml")


# ---------------------------------------------------------------------- probes


def test_probes_are_validation_rows_of_the_capability():
    held_out = ["mbpp", "gsm8k", None, "aime", "gsm8k", "dapo", "dapo", "mbpp"]
    capabilities = Capabilities.read(SOURCES, rules=RULES)
    chosen = capabilities.with_probes(held_out, seed=1)
    maths, code = chosen.probes
    assert len(maths) == 2
    assert {held_out[row] for row in maths} <= {"gsm8k", "dapo"}
    assert [held_out[row] for row in code] == ["mbpp"]
    np.testing.assert_array_equal(chosen.groups, capabilities.groups)  # the training prompts all stay
    assert [probe.tolist() for probe in capabilities.with_probes(held_out, seed=1).probes] == [
        probe.tolist() for probe in chosen.probes
    ]
    assert len({tuple(capabilities.with_probes(held_out, seed=s).probes[0].tolist()) for s in range(20)}) > 3


def test_too_few_validation_rows_are_an_error():
    capabilities = Capabilities.read(SOURCES, rules=RULES)
    with pytest.raises(PacedError, match=r"'maths' wants 2 probe prompts, but has 1 validation rows\. Lower its probe"):
        capabilities.with_probes(["mbpp", "gsm8k"])


def test_probes_may_be_set_apart_of_the_training_prompts():
    sources = [f"s{i % 3}" for i in range(90)]
    rules = {name: Rule(probe=count) for name, count in (("s0", 3), ("s1", 29), ("s2", 7))}
    capabilities = Capabilities.read(sources, rules=rules)
    apart = capabilities.with_set_apart(seed=2)
    assert [len(probe) for probe in apart.probes] == [3, 29, 7]
    np.testing.assert_array_equal(apart.sizes, [27, 1, 23])
    for group, probe in enumerate(apart.probes):
        assert (capabilities.groups[probe] == group).all()
        assert (apart.groups[probe] == -1).all()
    kept = apart.groups >= 0
    np.testing.assert_array_equal(apart.groups[kept], capabilities.groups[kept])
    assert kept.sum() == 90 - 39
    with pytest.raises(PacedError, match="'s0' wants 30 probe prompts, but has 30 training prompts, and one at least"):
        Capabilities.read(sources, rules=rules | {"s0": Rule(probe=30)}).with_set_apart()


def test_a_capabilitys_probes_do_not_depend_on_the_others():
    held_out = ["a"] * 50 + ["b"] * 50
    rules = {"a": Rule(probe=5), "b": Rule(probe=5)}
    both = Capabilities.read(["a", "b"], rules=rules).with_probes(held_out)
    other = Capabilities.read(["a", "b"], rules={"b": Rule(probe=9), "a": Rule(probe=5)}).with_probes(held_out)
    np.testing.assert_array_equal(both.probes[0], other.probes[1])
    assert (both.probes[0] != both.probes[1] - 50).any()


def test_prompts_that_are_probed_and_trained_are_found():
    training = [chat("1+1"), chat("2+2"), None, chat("1+1"), [{"role": "system", "content": "x"}, *chat("3+3")]]
    probes = [chat("5+5"), chat("1+1"), chat("3+3"), chat("2+2")]
    assert shared(training, probes) == [(1, 0), (1, 3), (3, 1)]
    assert shared(training, probes[::2]) == []
    assert shared(training, [chat("1+1 ")]) == []  # to the letter


# ---------------------------------------------------------------------- levels, and the data of this package


def test_levels_are_the_texts_that_say_something():
    places, names = levels(["hard", "easy", None, "{}", "null", "easy", " "])
    assert names == ["easy", "hard"]
    np.testing.assert_array_equal(places, [1, 0, -1, -1, -1, 0, -1])
    places, names = levels([None, None])
    assert names == []
    np.testing.assert_array_equal(places, [-1, -1])


def test_families_of_reasoning_gym_are_capabilities(tmp_path):
    pytest.importorskip("reasoning_gym")
    from paced_verl.tasks.reasoning_gym import prepare

    families = {"spell_backward": {}, "chain_sum": {"min_terms": 2, "max_terms": 3}, "number_sorting": {}}
    train, test = (pq.read_table(path) for path in prepare(families, 30, 12, 0, tmp_path))
    capabilities = Capabilities.read(train["data_source"])
    assert capabilities.names == tuple(f"reasoning_gym/{name}" for name in sorted(families))
    np.testing.assert_array_equal(capabilities.sizes, [10, 10, 10])

    rules = {name: Rule(match=(f"reasoning_gym/{name}",), probe=3) for name in families}
    chosen = Capabilities.read(train["data_source"], rules=rules).with_probes(test["data_source"])
    asked = [test["prompt"][int(row)].as_py() for row in np.concatenate(chosen.probes)]
    assert shared(train["prompt"].to_pylist(), asked) == []
    assert shared([*train["prompt"].to_pylist(), asked[4]], asked) == [(4, 30)]

    difficulty = [row["difficulty"] for row in train["extra_info"].to_pylist()]
    places, names = levels(difficulty)
    assert [names[place] for place in places] == difficulty
    terms = {json.loads(names[places[i]])["num_terms"] for i in np.flatnonzero(capabilities.groups == 0)}
    assert terms == {2, 3}
