from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paced_verl.targets import Target, TargetStore, column, prompt_hash

PROMPT = [{"role": "user", "content": "2+2?"}]

targets = st.builds(
    Target,
    st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple),
    st.text(max_size=5),
    st.sampled_from([True, False, None]),
    st.sampled_from(["", "abc"]),
)


@settings(deadline=None)
@given(rows=st.dictionaries(st.integers(0, 100), targets, max_size=6))
def test_a_saved_store_is_the_same_store(rows: dict[int, Target], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("targets") / "deep" / "targets.parquet"
    store, loaded = TargetStore(), TargetStore()
    for prompt, target in rows.items():
        store.add(prompt, target)
    store.save(path)
    loaded.load(path)
    assert len(loaded) == len(rows)
    assert all(loaded[prompt] == target for prompt, target in rows.items())
    assert [file.name for file in path.parent.iterdir()] == ["targets.parquet"], "no temporary file is left"


def test_a_response_of_another_problem_is_noticed() -> None:
    store = TargetStore()
    store.add(3, Target((1, 2), "4", prompt_hash=prompt_hash(PROMPT)))
    assert store.get(3, PROMPT) == store[3]
    assert store.get(4, PROMPT) is None
    with pytest.raises(ValueError, match="another problem"):
        store.get(3, [{"role": "user", "content": "3+3?"}])


def test_a_prompt_with_an_image_has_the_same_hash_in_every_process() -> None:
    def prompt() -> list[dict[str, object]]:
        return [{"role": "user", "content": [{"type": "image", "image": object()}, {"type": "text", "text": "what?"}]}]

    first, second = prompt(), prompt()
    assert prompt_hash(first) == prompt_hash(second)


@pytest.mark.parametrize("content", [b"", b"PAR1 truncated", b'{"prompt": 1}'])
def test_a_foreign_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "targets.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"targets\.parquet is not a file of teacher responses"):
        TargetStore().load(path)


def test_columns_by_dotted_path() -> None:
    row = {"extra_info": {"response": "4", "deep": {"er": 1}}, "answer": "4"}
    assert column(row, "answer") == "4"
    assert column(row, "extra_info.response") == "4"
    assert column(row, "extra_info.deep.er") == 1
    assert column(row, "extra_info.nothing") is None
    assert column(row, "answer.length") is None
