from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paced_verl.teacher.context import ContextError, TeacherContext

ROW = {
    "raw_prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
    "reward_model": {"ground_truth": "4"},
    "extra_info": {"solution": "two and two make 4"},
}


def test_without_a_context_the_teacher_sees_what_the_student_sees() -> None:
    context = TeacherContext("none")
    assert not context.privileged
    assert context.messages(ROW) == ROW["raw_prompt"]


def test_the_papers_order_problem_solution_problem() -> None:
    system, user = TeacherContext("solution").messages(ROW)
    assert system == ROW["raw_prompt"][0]
    parts = [user["content"].index(text) for text in ("2+2?", "two and two make 4")]
    assert user["content"].startswith("2+2?")
    assert user["content"].endswith("2+2?")
    assert parts == sorted(parts)
    assert "4" not in user["content"].replace("two and two make 4", ""), "the answer alone is not shown"


def test_the_answer_is_shown() -> None:
    assert "The final answer is 4." in TeacherContext("answer").messages(ROW)[-1]["content"]


def test_the_students_row_is_left_alone() -> None:
    TeacherContext("solution").messages(ROW)
    assert ROW["raw_prompt"][-1]["content"] == "2+2?"


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ extra_info.hint }} -> {{ problem }}")
    row = ROW | {"extra_info": {"hint": "even"}}
    context = TeacherContext(str(template))
    assert context.messages(row)[-1]["content"] == "even -> 2+2?"
    assert context.variables == {"extra_info", "problem"}


def test_a_prompt_that_ends_with_another_role_is_replaced_there() -> None:
    row = ROW | {"raw_prompt": [*ROW["raw_prompt"], {"role": "assistant", "content": "Well,"}]}
    *before, last = TeacherContext("answer").messages(row)
    assert before == ROW["raw_prompt"]
    assert last["role"] == "assistant"
    assert last["content"].startswith("Well,")


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("{{ problem }}\n{{ solution", 2, "end of print statement"),
        ("{{ problem }}\n{% if answer %}", 2, "end of template"),
        ("{{ problem }}\n{% endfor %}", 2, "unknown tag 'endfor'"),
        ("{{ problem }}\n\n{{ solutoin }}", 3, "'solutoin' is undefined. Did you mean 'solution'?"),
        ("{{ problem }}\n{{ hint }}", 2, "'hint' is undefined. Choose from: problem, solution, answer"),
        ("{{ problem }}\n{{ answer | uper }}", 2, "no filter 'uper'. Did you mean 'upper'?"),
        ("{% if extra_info.x %}\n{{ problem | shout }}{% endif %}", 2, "no filter 'shout'"),
        ("{{ problem }}\n{% if answer is evn %}x{% endif %}", 2, "no test 'evn'. Did you mean 'even'?"),
        ("{{ problem }}\n{% include 'other.jinja' %}", 2, "cannot read another template"),
        ("Be brief.", None, "shows nothing of the row"),
        ("{# problem #}", None, "shows nothing of the row"),
        (" \n", None, "empty"),
    ],
)
def test_a_template_that_no_row_can_fill_is_refused_where_it_is_read(
    tmp_path: Path, source: str, line: int | None, words: str
) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(source)
    with pytest.raises(ContextError) as error:
        TeacherContext(str(template))
    assert words in str(error.value)
    assert f"{template}'" + (f", line {line}:" if line else ":") in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_template_in_another_encoding_is_refused_and_a_byte_order_mark_is_not_shown(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_bytes("schön {{ problem }}".encode("latin-1"))
    with pytest.raises(ContextError, match="UTF-8"):
        TeacherContext(str(template))
    template.write_bytes("schön {{ problem }}".encode("utf-8-sig"))
    assert TeacherContext(str(template)).messages(ROW)[-1]["content"] == "schön 2+2?"


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("{{ problem }}\n{{ extra_info.hint }}", 2, "has no attribute 'hint'"),
        ("{{ problem }}\n{{ problem.foo }}", 2, "has no attribute 'foo'"),
        ("{{ problem }}\n\n{{ answer[99] }}", 3, "has no element 99"),
        ("{{ problem }}\n{{ 1 // (answer | int - 4) }}", 2, "zero"),
        ("{{ problem }}\n{{ problem + 1 }}", 2, "str"),
        ("{{ problem }}\n{{ rollout }}", 2, "'rollout' is undefined"),
        ("{{ problem }}\n{{ extra_info.nothing }}", 2, "got nothing (null)"),
        ("{{ problem }}\n{{ extra_info.list }}", 2, "got a list"),
        ("{{ problem }}\n{{ extra_info }}", 2, "got a dict"),
        ("{{ problem }}\n{{ problem | map('upper') }}", 2, "got a generator"),
        ("{{ problem }}\n{{ extra_info.__class__ }}", 2, "unsafe"),
        ("{{ problem }}\n{{ ''.join(extra_info.list.append('x')) }}", 2, "unsafe"),
        ("{{ problem }}\n{% for i in range(10000000) %}{% endfor %}", 2, "Range too big"),
        ("{% if not problem %}x{% endif %}", None, "shows the teacher nothing"),
    ],
)
def test_a_template_that_fails_on_a_row_says_where(tmp_path: Path, source: str, line: int | None, words: str) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(source)
    row = ROW | {"extra_info": {"nothing": None, "list": ["a"]}}
    with pytest.raises(ContextError) as error:
        TeacherContext(str(template)).messages(row)
    assert words in str(error.value)
    assert f"{template}'" + (f", line {line}:" if line else ":") in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert row["extra_info"]["list"] == ["a"]


@pytest.mark.parametrize("value", [None, "", " \n\t", float("nan")])
@pytest.mark.parametrize(
    ("name", "column", "field"), [("solution", "extra_info", "solution"), ("answer", "reward_model", "ground_truth")]
)
def test_what_a_context_shows_must_be_there_and_not_blank(name: str, column: str, field: str, value: Any) -> None:
    context = TeacherContext(name)
    whole = context.messages(ROW)
    for row in (ROW | {column: {field: value}}, ROW | {column: {}}, ROW | {column: None}):
        with pytest.raises(ContextError, match=rf"context '{name}': .*{column}\.{field}, which is (missing|blank)"):
            context.messages(row)
    others = {"solution": "answer", "answer": "solution"}[name]
    assert TeacherContext(others).messages(ROW | {column: {field: value}}) != whole, "what is not shown may be missing"


@pytest.mark.parametrize("solution", [{"steps": ["a"]}, ["a", "b"], np.array(["a"])])
def test_a_solution_that_is_not_text_is_not_printed(solution: Any) -> None:
    with pytest.raises(ContextError, match=r"line 5: .*must be text or a number"):
        TeacherContext("solution").messages(ROW | {"extra_info": {"solution": solution}})


@pytest.mark.parametrize("answer", [4, np.int64(4), np.float32(4.5), 0, False])
def test_an_answer_may_be_a_number(answer: Any) -> None:
    shown = TeacherContext("answer").messages(ROW | {"reward_model": {"ground_truth": answer}})[-1]["content"]
    assert f"The final answer is {answer}." in shown


def test_images_are_not_printed_into_a_template() -> None:
    parts = [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "2+2?"}]
    row = ROW | {"raw_prompt": [{"role": "user", "content": parts}]}
    with pytest.raises(ContextError, match=r"must be text, got a list: .*images"):
        TeacherContext("solution").messages(row)
    assert TeacherContext("none").messages(row) == row["raw_prompt"]


@pytest.mark.parametrize("prompt", [[], "2+2?", None, [None], 3])
@pytest.mark.parametrize("name", ["none", "solution"])
def test_a_prompt_that_is_no_list_of_messages_is_refused(prompt: Any, name: str) -> None:
    with pytest.raises(ContextError, match="list of messages"):
        TeacherContext(name).messages(ROW | {"raw_prompt": prompt})
