import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paced_verl.capability.curriculum import Levels
from paced_verl.capability.table import Capabilities
from paced_verl.errors import PacedError
from paced_verl.fingerprint import prompt_hash, template_hash

SOURCES = ["gsm8k", "mbpp", "gsm8k", "dapo", "humaneval", "mbpp"]
MATCH = {"maths": ("gsm8k", "dapo"), "code": ("mbpp", "humaneval")}


def test_each_value_is_a_capability_by_default():
    capabilities = Capabilities.read(SOURCES)
    assert capabilities.names == ("dapo", "gsm8k", "humaneval", "mbpp")
    np.testing.assert_array_equal(capabilities.groups, [1, 3, 1, 0, 2, 3])
    assert capabilities.groups.dtype == np.int16
    np.testing.assert_array_equal(capabilities.sizes, [1, 2, 1, 2])


def test_a_capability_may_be_several_values():
    capabilities = Capabilities.read(SOURCES, match=MATCH)
    assert capabilities.names == ("maths", "code")
    np.testing.assert_array_equal(capabilities.groups, [0, 1, 0, 0, 1, 1])


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
    np.testing.assert_array_equal(Capabilities.read(values, match=MATCH).groups, [0, 1, 0, 0, 1, 1])


def test_numbers_match_as_they_are_written():
    match = {"easy": (1, 2), "hard": ("3",)}
    np.testing.assert_array_equal(Capabilities.read([3, 1, 2], "level", match).groups, [1, 0, 0])


def test_the_order_of_rows_does_not_name_capabilities():
    first, second = Capabilities.read(SOURCES), Capabilities.read(SOURCES[::-1])
    assert first.names == second.names
    np.testing.assert_array_equal(first.groups, second.groups[::-1])


@pytest.mark.parametrize(
    ("values", "match", "message"),
    [
        (
            [*SOURCES, "mmlu", None, "mmlu"],
            MATCH,
            r"3 of 9 training prompts match no capability: their column data_source has 'mmlu' \(2\), nothing \(1\); "
            r"the first is row 6.*maths, code",
        ),
        (SOURCES, MATCH | {"all": ("mbpp",)}, "'code' and 'all' both match 'mbpp'.*leave it to one"),
        (
            SOURCES,
            MATCH | {"words": ("words",)},
            r"capability 'words' has no prompts: none has 'words' in the column data_source.*dapo, gsm8k",
        ),
        ([None, "a"], None, r"1 of 2 training prompts match no capability.*nothing \(1\)"),
        ([None, None], None, "data_source has 0 values"),
        (list(range(1001)), None, "has 1,001 values.*Name another column"),
    ],
)
def test_what_is_wrong_with_capabilities_is_said(values, match, message):
    with pytest.raises(PacedError, match=message):
        Capabilities.read(values, match=match)


def test_names_are_looked_up():
    capabilities = Capabilities.read(SOURCES, match=MATCH)
    np.testing.assert_array_equal(capabilities.vector({"code": 0.25, "maths": 0.75}), [0.75, 0.25])
    np.testing.assert_array_equal(capabilities.vector({"code": 1}), [0, 1])
    with pytest.raises(PacedError, match=r"no capability 'math'\. Did you mean 'maths'"):
        capabilities.vector({"math": 1})


# ---------------------------------------------------------------------- probes


def test_a_requirement_is_shares_and_all_alike_where_none_is_written():
    found = Capabilities.read(["b", "a", "c", "a"])
    assert found.required(None).tolist() == pytest.approx([1 / 3] * 3)
    shares = dict(zip(found.names, found.required({"a": 3.0, "c": 1.0}).tolist(), strict=True))
    assert shares == {"a": 0.75, "b": 0.0, "c": 0.25}
    with pytest.raises(PacedError, match="no capability 'd'"):
        found.required({"d": 1.0})


def test_probes_are_set_apart_of_the_training_prompts():
    capabilities = Capabilities.read([f"s{i % 3}" for i in range(90)])
    apart = capabilities.set_apart(7, [str(i) for i in range(90)], seed=2)
    np.testing.assert_array_equal(apart.sizes, [23, 23, 23])
    for group, probe in enumerate(apart.probes):
        assert len(set(probe.tolist())) == 7
        assert (capabilities.groups[probe] == group).all()
        assert (apart.groups[probe] == -1).all()
    kept = apart.groups >= 0
    np.testing.assert_array_equal(apart.groups[kept], capabilities.groups[kept])
    assert kept.sum() == 90 - 21
    with pytest.raises(PacedError, match="'s0' wants 30 probe prompts, but has 30 training prompts, and one at least"):
        capabilities.set_apart(30, [str(i) for i in range(90)])
    drawn = {tuple(capabilities.set_apart(7, [str(i) for i in range(90)], s).probes[0].tolist()) for s in range(20)}
    assert len(drawn) > 3


def test_no_prompt_that_equals_a_probe_is_trained():
    """Also where it stands under another capability."""
    hashes = [str(i % 20) for i in range(60)]
    apart = Capabilities.read(["a"] * 30 + ["b"] * 30).set_apart(4, hashes)
    probed = {hashes[row] for probe in apart.probes for row in probe.tolist()}
    assert {row for row in range(60) if apart.groups[row] < 0} == {row for row in range(60) if hashes[row] in probed}
    with pytest.raises(PacedError, match="every training prompt equals one of its 2 probes"):
        Capabilities.read(["a"] * 30).set_apart(2, ["same"] * 30)


def test_no_prompt_that_has_a_probes_template_is_trained_unless_most_have():
    """Sums come as 'a + b' with other numbers each; of stories every third one is told twice, with other numbers."""
    sums = [f"What is {a} + {a + 3}?" for a in range(40)]
    stories = [f"Story {chr(65 + i // 2 % 26)}: {i} apples, {i + 1:,} pears." for i in range(20)]
    stories += [f"Story {chr(97 + i)}{chr(97 + i)}: {i} plums." for i in range(20)]
    messages = [[{"role": "user", "content": text}] for text in (*sums, *stories)]
    hashes, templates = [prompt_hash(m) for m in messages], [template_hash(m) for m in messages]
    capabilities = Capabilities.read(["sums"] * 40 + ["stories"] * 40)
    apart = capabilities.set_apart(8, hashes, templates=templates)
    assert apart.alike == ("sums",)
    assert (apart.groups[:40] >= 0).sum() == 32, "all but the probes"
    probes = set(apart.probes[0].tolist())
    stems = {stories[row - 40].split(":")[0] for row in probes}
    trained = [text for text, group in zip(stories, apart.groups[40:], strict=True) if group >= 0]
    assert not {text.split(":")[0] for text in trained} & stems
    assert len(trained) < 32, "twins of probes are set apart, too"
    exact = capabilities.set_apart(8, hashes)
    assert (exact.groups >= 0).sum() == 64
    assert exact.alike == ()


def test_a_template_is_what_is_left_without_numbers_case_and_spaces():
    def of(text):
        return template_hash([{"role": "user", "content": text}])

    assert of("Add 12 and  3.5") == of("add 1 and 1,000")
    assert of("é 1") != of("è 1")
    assert of("Add 1 and 2") != of("Add 1 or 2")


def test_a_capabilitys_probes_do_not_depend_on_the_others():
    hashes = [str(i) for i in range(150)]
    both = Capabilities.read(["a"] * 50 + ["b"] * 50).set_apart(5, hashes[:100])
    other = Capabilities.read(["0"] * 50 + ["a"] * 50 + ["c"] * 50).set_apart(5, hashes)
    np.testing.assert_array_equal(both.probes[0], other.probes[1] - 50)
    assert (both.probes[0] != both.probes[1] - 50).any()


# ---------------------------------------------------------------------- the data of this package


def test_families_of_reasoning_gym_are_capabilities(tmp_path):
    pytest.importorskip("reasoning_gym")
    from paced_verl.tasks.reasoning_gym import prepare

    families = {"spell_backward": {}, "chain_sum": {"min_terms": 2, "max_terms": 3}, "number_sorting": {}}
    train = pq.read_table(prepare(families, 30, 12, 0, tmp_path)[0])
    capabilities = Capabilities.read(train["data_source"])
    assert capabilities.names == tuple(f"reasoning_gym/{name}" for name in sorted(families))
    np.testing.assert_array_equal(capabilities.sizes, [10, 10, 10])

    difficulty = [row["difficulty"] for row in train["extra_info"].to_pylist()]
    levels = Levels.read(difficulty, "extra_info.difficulty")
    assert [levels.names[place] for place in levels.of] == difficulty
    terms = {json.loads(levels.names[levels.of[i]])["num_terms"] for i in np.flatnonzero(capabilities.groups == 0)}
    assert terms == {2, 3}
