from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from paced_verl.context import TeacherContext

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
    with pytest.raises(jinja2.UndefinedError):
        context.messages(ROW)


def test_a_row_without_a_solution_is_an_error_not_an_empty_one() -> None:
    with pytest.raises(KeyError):
        TeacherContext("solution").messages(ROW | {"extra_info": {}})
