"""What the teacher sees: the student's prompt, or a privileged one with an expert solution or the final answer.

A context is a Jinja template that replaces the content of the prompt's last user message. It may use ``problem`` (that
message), ``solution`` (``extra_info[solution_key]``), ``answer`` (``reward_model.ground_truth``), ``extra_info`` and
``rollout`` (a correct response of the student to the same prompt, never the one that is scored).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template, meta

BUILTIN = ("none", "solution", "answer", "rollout")
_FOLDER = Path(__file__).parent / "contexts"


class TeacherContext:
    """Turns a row of the data into the teacher's messages.

    Args:
        context: One of ``BUILTIN``, or the path of a template.
        solution_key: The field of ``extra_info`` that holds the expert solution.
    """

    def __init__(self, context: str = "none", solution_key: str = "solution"):
        self.solution_key = solution_key
        self._source: str | None = None
        if context != "none":
            path = _FOLDER / f"{context}.jinja" if context in BUILTIN else Path(context)
            self._source = path.read_text()

    @property
    def privileged(self) -> bool:
        """Whether the teacher sees more than the student."""
        return self._source is not None

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names the template uses."""
        if self._source is None:
            return frozenset()
        return frozenset(meta.find_undeclared_variables(Environment(autoescape=False).parse(self._source)))

    @cached_property
    def _template(self) -> Template:
        environment = Environment(undefined=StrictUndefined, trim_blocks=True, autoescape=False)
        return environment.from_string(self._source or "")

    @property
    def needs_rollout(self) -> bool:
        """Whether it shows a rollout of the student."""
        return "rollout" in self.variables

    def messages(self, row: Mapping[str, Any], rollout: str | None = None) -> list[dict[str, Any]]:
        """The teacher's chat messages for a row.

        Args:
            row: A row as verl's dataset gives it, with ``raw_prompt``, ``reward_model`` and ``extra_info``.
            rollout: The student's correct response, where the template shows one.

        Raises:
            KeyError, jinja2.UndefinedError: The row lacks something that the template uses.
        """
        prompt = [dict(message) for message in row["raw_prompt"]]
        if not self.privileged:
            return prompt
        extra_info = row.get("extra_info") or {}
        values: dict[str, Any] = {"problem": prompt[-1]["content"], "extra_info": extra_info}
        if "solution" in self.variables:
            values["solution"] = extra_info[self.solution_key]
        if "answer" in self.variables:
            values["answer"] = row["reward_model"]["ground_truth"]
        if rollout is not None:
            values["rollout"] = rollout
        prompt[-1]["content"] = self._template.render(values).strip()
        return prompt
