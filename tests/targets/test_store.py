from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from paced_verl.errors import PacedError
from paced_verl.fingerprint import fingerprint_of, prompt_hash
from paced_verl.targets.files import SCHEMA, Origin, read_outcomes
from paced_verl.targets.store import Target, TargetStore, column, response_in

PROMPT = [{"role": "user", "content": "2+2?"}]

targets = st.builds(
    Target,
    st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple),
    st.text(max_size=5),
    st.sampled_from([True, False, None]),
    st.sampled_from(["", "abc"]),
    st.integers(1, 9),
)


def contents(store: TargetStore) -> dict[int, Target]:
    return {prompt: store[prompt] for prompt in range(200) if prompt in store}


@settings(deadline=None)
@given(rows=st.dictionaries(st.integers(0, 100), targets, max_size=6))
def test_a_saved_file_is_the_same_store(rows: dict[int, Target], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("targets") / "deep" / "targets.parquet"
    store, loaded = TargetStore(), TargetStore()
    for prompt, target in rows.items():
        store.add(prompt, target)
    store.save(path)
    loaded.load(path)
    assert contents(loaded) == contents(store) == rows
    assert len(loaded) == len(rows)
    assert loaded.responses == sum(bool(target.token_ids) for target in rows.values())
    assert [file.name for file in path.parent.iterdir()] == ["targets.parquet"], "no temporary file is left"
    judged = [(prompt, int(row.correct), row.tries) for prompt, row in sorted(rows.items()) if row.correct is not None]
    assert list(zip(*map(np.ndarray.tolist, read_outcomes(path)), strict=True)) == judged, "read without the responses"


class Killed(BaseException):
    """SIGKILL, as far as files go: nothing is tidied up."""


def killed_at(moment: int, patch: pytest.MonkeyPatch) -> None:
    """Let so many files be put in place, and none be removed any more; then the process is gone."""
    left = iter(range(moment))

    def counted(function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            if next(left, None) is None:
                raise Killed
            function(*arguments)

        return call

    for name in ("link", "replace"):
        patch.setattr(os, name, counted(getattr(os, name)))
    patch.setattr(Path, "unlink", lambda *_, **__: None)


steps = st.integers(1, 4)
prompts = st.integers(0, 9)


class Life(RuleBasedStateMachine):
    """Runs that store responses, save, are killed, resume from any checkpoint: what they hold equals dictionaries."""

    @initialize(links=st.booleans())
    def begin(self, links: bool) -> None:
        self.folder, self.links = Path(tempfile.mkdtemp()), links
        self.store, self.here = TargetStore(), dict[int, Target]()
        self.saved: dict[int, dict[int, Target]] = {}
        self.file: dict[int, Target] = {}

    def checkpoint(self, step: int) -> Path:
        return self.folder / f"global_step_{step}" / "paced" / "targets"

    def save_parts(self, step: int, moment: int | None) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if not self.links:

                def refuse(*_: Any) -> None:
                    raise OSError("no links here")

                patch.setattr(os, "link", refuse)
            if moment is not None:
                killed_at(moment, patch)
            self.store.save_parts(self.checkpoint(step))

    @rule(prompt=prompts, response=targets)
    def add(self, prompt: int, response: Target) -> None:
        self.store.add(prompt, response)
        self.here[prompt] = response

    @rule(step=steps)
    def save(self, step: int) -> None:
        self.save_parts(step, None)
        self.saved[step] = dict(self.here)
        assert not list(self.checkpoint(step).glob(".*")), "what a killed save has left is gone"

    @rule(step=steps, moment=st.integers(0, 4), then=steps)
    def save_and_be_killed(self, step: int, moment: int, then: int) -> None:
        try:
            self.save_parts(step, moment)
            self.saved[step] = dict(self.here)
        except Killed:
            self.store, self.here = TargetStore(), {}
            self.resume(then)

    @rule(step=steps)
    def resume(self, step: int) -> None:
        """In a new process, which reads the file first if there is one."""
        self.store, self.here = TargetStore(), {}
        if self.file:
            self.store.load(self.folder / "targets.parquet")
        if step in self.saved:
            self.store.load(self.checkpoint(step))
        else:
            with pytest.raises(ValueError, match=r"no(t a file of)? teacher responses"):
                self.store.load(self.checkpoint(step))
        self.here = self.file | self.saved.get(step, {})

    @rule(step=steps)
    def read(self, step: int) -> None:
        """In the same process, over what is there."""
        if step in self.saved:
            self.store.load(self.checkpoint(step))
            self.here |= self.saved[step]

    @rule(step=steps)
    def delete(self, step: int) -> None:
        shutil.rmtree(self.folder / f"global_step_{step}", ignore_errors=True)
        self.saved.pop(step, None)

    @rule(step=steps)
    def copy_elsewhere(self, step: int) -> None:
        """A checkpoint is taken to another file system, the others are lost."""
        if step in self.saved:
            there = Path(tempfile.mkdtemp())
            shutil.copytree(self.folder / f"global_step_{step}", there / f"global_step_{step}")
            shutil.rmtree(self.folder)
            self.folder, self.saved, self.file = there, {step: self.saved[step]}, {}

    @rule()
    def write_file(self) -> None:
        self.store.save(self.folder / "targets.parquet")
        self.file = dict(self.here)

    @invariant()
    def equals_the_dictionary(self) -> None:
        assert contents(self.store) == self.here
        assert len(self.store) == len(self.here)

    def teardown(self) -> None:
        for step, rows in self.saved.items():
            store = TargetStore()
            store.load(self.checkpoint(step))
            assert contents(store) == rows
        shutil.rmtree(self.folder)


Life.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=25)
TestLife = Life.TestCase


def parts(folder: Path) -> dict[str, tuple[int, list[int]]]:
    """Inode and prompts of each part, by name."""
    return {
        file.name: (file.stat().st_ino, pq.read_table(file)["prompt"].to_pylist()) for file in folder.glob("*.parquet")
    }


def test_two_runs_that_share_a_file_add_to_it(tmp_path: Path) -> None:
    file = tmp_path / "targets.parquet"
    first, second = TargetStore(Origin("data", "words")), TargetStore(Origin("data", "words"))
    for store in (first, second):
        store.add(0, Target((1,), "old"))
    first.save(file)
    second.load(file)
    first.add(1, Target((2,), "first"))
    second.add(2, Target((3,), "second"))
    second.add(0, Target((4,), "new"))
    first.save(file)
    second.save(file)
    first.add(3, Target((5,), "later"))
    first.save(file)
    together = TargetStore(Origin("data", "words"))
    together.load(file)
    assert [together[prompt].response for prompt in range(4)] == ["old", "first", "second", "later"]
    assert 2 not in first, "what another run has written does not change what this one trains on"
    TargetStore(Origin("other", "words")).save(tmp_path / "empty.parquet")
    with pytest.raises(PacedError, match="data set data"):
        first.save(tmp_path / "empty.parquet")


def test_a_file_that_was_deleted_does_not_come_back(tmp_path: Path) -> None:
    file = tmp_path / "targets.parquet"
    TargetStore().save(file)
    store = TargetStore()
    store.load(file)
    file.unlink()
    store.add(7, Target((1,), "own"))
    store.save(file)
    again = TargetStore()
    again.load(file)
    assert len(again) == 1


def test_a_checkpoint_writes_only_what_came_since_the_last_one(tmp_path: Path) -> None:
    store, folders = TargetStore(), [tmp_path / str(step) / "targets" for step in range(3)]
    for prompt in (1, 2):
        store.add(prompt, Target((prompt,)))
    store.save_parts(folders[0])
    store.add(3, Target((3,)))
    store.add(1, Target((9,)))
    store.save_parts(folders[1])
    store.save_parts(folders[2])
    (first,) = parts(folders[0]).items()
    second = parts(folders[1])
    assert second.pop(first[0]) == first[1], "the same file, with another name"
    ((_, (_, new)),) = second.items()
    assert new == [1, 3]
    assert parts(folders[2]) == parts(folders[1]), "nothing new, nothing written"
    loaded = TargetStore()
    loaded.load(folders[2])
    assert [loaded[prompt].token_ids for prompt in (1, 2, 3)] == [(9,), (2,), (3,)]


def store_of(**ids: int) -> TargetStore:
    store = TargetStore()
    for prompt, token in ids.items():
        store.add(int(prompt[1:]), Target((token,)))
    return store


def test_parts_of_another_life_are_not_taken_for_ones_own(tmp_path: Path) -> None:
    """A run resumes from its first checkpoint and comes to the third one again, by other responses."""
    first, second, third = (tmp_path / str(step) for step in (1, 2, 3))
    for life in (5, 6):
        store = store_of(p1=1) if life == 5 else TargetStore()
        if life == 6:
            store.load(first)
        else:
            store.save_parts(first)
        for prompt, folder in ((2, second), (3, third)):
            store.add(prompt, Target((life,)))
            store.save_parts(folder)
        loaded = TargetStore()
        loaded.load(third)
        assert contents(loaded) == {1: Target((1,)), 2: Target((life,)), 3: Target((life,))}
        assert len(parts(third)) == 3, "what the other life had left there is gone"


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_a_save_that_is_killed_leaves_what_was_there(tmp_path: Path, moment: int) -> None:
    """At the link to an older part, the new part, and the list of parts; temporary files stay, until the next save."""
    store_of(p1=7).save_parts(tmp_path / "2")
    store = store_of(p1=1)
    store.save_parts(tmp_path / "1")
    store.add(2, Target((2,)))
    with pytest.MonkeyPatch.context() as patch:
        killed_at(moment, patch)
        with pytest.raises(Killed):
            store.save_parts(tmp_path / "2")
    loaded = TargetStore()
    loaded.load(tmp_path / "2")
    assert contents(loaded) == {1: Target((7,))}
    assert bool(list((tmp_path / "2").glob(".*"))) == (moment > 0)
    store.save_parts(tmp_path / "2")
    loaded.load(tmp_path / "2")
    assert contents(loaded) == {1: Target((1,)), 2: Target((2,))}
    assert len(list((tmp_path / "2").iterdir())) == 3, "two parts and their list"


def test_four_bytes_a_token_and_one_a_letter() -> None:
    store = TargetStore()
    store.add(0, Target(tuple(range(1000, 2000)), "x" * 3000 + "α"))
    (row,) = store._rows.values()
    assert row.token_ids.nbytes == 4 * 1000
    assert len(row.response) == 3002


def test_a_file_of_another_data_set_or_tokenizer_is_refused(tmp_path: Path) -> None:
    """Both where it is known: a file that says nothing is for everybody, and so is a reader that does not ask."""
    store = TargetStore(Origin("data", "tokens"))
    store.add(3, Target((1, 2), "4"))
    store.save(tmp_path / "file.parquet")
    store.save_parts(tmp_path / "folder")
    for path in (tmp_path / "file.parquet", tmp_path / "folder"):
        for origin in (Origin(), Origin("data", "tokens"), Origin(data="data"), Origin(tokenizer="tokens")):
            reader = TargetStore(origin)
            reader.load(path)
            assert reader[3] == store[3]
        with pytest.raises(ValueError, match="expected teacher responses for data set other, found those for data"):
            TargetStore(Origin("other", "tokens")).load(path)
        with pytest.raises(ValueError, match="student's tokenizer others, found those of tokens"):
            TargetStore(Origin("data", "others")).load(path)
    unknown = TargetStore()
    unknown.add(3, Target((1, 2), "4"))
    unknown.save(tmp_path / "unknown.parquet")
    TargetStore(Origin("other", "others")).load(tmp_path / "unknown.parquet")


def rows_of(*texts: str) -> list[dict[str, Any]]:
    return [{"raw_prompt": [{"role": "user", "content": text}]} for text in texts]


def test_a_data_set_is_named_by_its_prompts_in_their_order() -> None:
    many = [f"problem {i}" for i in range(200)]
    names = [many, many[::-1], many[:-1], ["other", *many[1:]], [*many[:-1], "other"]]
    assert len({fingerprint_of(rows_of(*texts)) for texts in names}) == len(names)
    assert fingerprint_of(rows_of(*many)) == fingerprint_of(rows_of(*many))


def test_responses_that_cannot_belong_to_the_data_are_refused_at_the_start() -> None:
    data = rows_of(*(f"problem {i}" for i in range(300)))

    def store(place: int, of: int, ids: tuple[int, ...] = (1, 9)) -> TargetStore:
        store = TargetStore()
        for prompt in range(100):
            hashed = prompt_hash(data[of if prompt == place else prompt]["raw_prompt"])
            store.add(prompt if prompt != place else place, Target(ids, prompt_hash=hashed))
        return store

    store(0, 0).check(data, vocabulary=10)
    TargetStore().check(data, vocabulary=10)
    with pytest.raises(ValueError, match="prompt 99 was made for another problem"):
        store(99, 98).check(data, vocabulary=10)
    with pytest.raises(ValueError, match="for prompt 99, but the data have 99 prompts"):
        store(0, 0).check(data[:99], vocabulary=10)
    with pytest.raises(ValueError, match="token id 9, but the student knows the ids below 9"):
        store(0, 0).check(data, vocabulary=9)


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
    with pytest.raises(ValueError, match=r"targets\.parquet is not a file of teacher responses"):
        read_outcomes(path)


def test_columns_by_dotted_path() -> None:
    row = {"extra_info": {"response": "4", "deep": {"er": 1}}, "answer": "4"}
    assert column(row, "answer") == "4"
    assert column(row, "extra_info.response") == "4"
    assert column(row, "extra_info.deep.er") == 1
    assert column(row, "extra_info.nothing") is None
    assert column(row, "answer.length") is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"token_ids": [[1, None]]}, "null in column token_ids"),
        ({"token_ids": [None]}, "null in column token_ids"),
        ({"prompt": [None]}, "null in column prompt"),
        ({"token_ids": [[-1]]}, "a negative prompt or token id"),
        ({"prompt": [-1]}, "a negative prompt or token id"),
        ({"token_ids": [[2**40]]}, "2\\^?40|1099511627776"),
        ({"token_ids": ["text"]}, "string"),
        ({"token_ids": []}, "it has no column token_ids"),
    ],
)
def test_a_file_with_impossible_rows_is_refused(tmp_path: Path, changed: dict[str, list[Any]], words: str) -> None:
    row: dict[str, list[Any]] = {
        "prompt": [0], "prompt_hash": ["a"], "token_ids": [[1]], "response": ["x"], "correct": [None]
    }  # fmt: skip
    table = pa.table({name: values for name, values in (row | changed).items() if values})
    pq.write_table(table, tmp_path / "targets.parquet")
    with pytest.raises(ValueError, match=rf"targets\.parquet is not a file of teacher responses.*({words})"):
        TargetStore().load(tmp_path / "targets.parquet")


def test_a_file_of_wider_types_in_another_order_is_read(tmp_path: Path) -> None:
    """As other libraries write it."""
    wide = pa.table(
        {
            "correct": [True],
            "token_ids": pa.array([[5, 6]], pa.large_list(pa.int64())),
            "response": pa.array(["x"], pa.large_string()),
            "prompt_hash": [""],
            "more": [1],
            "prompt": pa.array([7], pa.int32()),
        }
    )
    assert set(SCHEMA.names) - {"tries"} < set(wide.column_names), "one try each, where a file does not say"
    pq.write_table(wide, tmp_path / "wide.parquet")
    store = TargetStore()
    store.load(tmp_path / "wide.parquet")
    assert contents(store) == {7: Target((5, 6), "x", True)}
    assert [column.tolist() for column in read_outcomes(tmp_path / "wide.parquet")] == [[7], [1], [1]]


@pytest.mark.parametrize("nothing", [{}, {"response": None}, {"response": ""}, {"response": " \n"}])
def test_a_blank_field_is_no_response(nothing: dict[str, Any]) -> None:
    assert response_in({"extra_info": nothing}, "extra_info.response") is None


def test_the_response_of_a_row_is_text() -> None:
    assert response_in({"response": " 4\n"}, "response") == " 4\n"
    for value in (4, 0, ["4"], {"text": "4"}):
        with pytest.raises(ValueError, match=r"paced\.targets\.column=response: expected the text of a response"):
            response_in({"response": value}, "response")
