"""What the teacher sees: the student's prompt, or a privileged one with an expert solution or the final answer.

A context is a Jinja template that replaces the content of the prompt's last message, whatever its role. It may use
``problem`` (that message), ``solution`` (``extra_info[solution_key]``), ``answer`` (``reward_model.ground_truth``),
``extra_info`` and ``rollout`` (a correct response of the student to the same prompt, never the one that is scored).
`paced-verl align` also knows ``wrong`` (a wrong response to it) and ``other`` (the solution of another problem).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from numbers import Number
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, nodes
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from paced_verl.errors import PacedError, nearest

BUILTIN = ("none", "solution", "answer", "rollout", "two_rollouts", "other")
SHOWN = ("rollout", "wrong", "other")
"""What a template may show that no row has: a correct and a wrong response of the student to the same problem, and the
solution of another one."""
NAMES = ("problem", "solution", "answer", "extra_info", *SHOWN)
_FOLDER = Path(__file__).parent / "templates"


class ContextError(PacedError):
    """A template that cannot be used, or a row that lacks what it shows; names the template and, if known, the line."""


def _as_text(value: Any) -> Any:
    """What ``{{ … }}`` may print: text and numbers as they are, and nothing's or a container's insides never."""
    if not isinstance(value, str | Number | Undefined):
        raise TypeError(f"what is shown must be text or a number, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return "nothing (null)" if value is None else f"a {type(value).__name__}"


class TeacherContext:
    """Turns a row of the data into the teacher's messages.

    Args:
        context: One of ``BUILTIN``, or the path of a template, UTF-8.
        solution_key: The field of ``extra_info`` that holds the expert solution.

    Attributes:
        variables: The names the template uses.

    Raises:
        ContextError: There is no such template, or it could not be rendered for any row.
    """

    def __init__(self, context: str = "none", solution_key: str = "solution"):
        self.name = context
        self.solution_key = solution_key
        self.variables: frozenset[str] = frozenset()
        self._template: Template | None = None
        if context != "none":
            self._compile(_read(context))

    def _compile(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, autoescape=False, finalize=_as_text
        )
        try:
            tree = environment.parse(source, filename=self.name)
            for line, problem in _problems(tree, environment):
                raise self._error(problem, line)
            code = environment.compile(source, filename=self.name)
        except TemplateSyntaxError as error:
            raise self._error(error.message or str(error), error.lineno) from None
        self.variables = frozenset(find_undeclared_variables(tree)) & frozenset(NAMES)
        if not self.variables:
            raise self._error(f"it shows nothing of the row; it may use {', '.join(NAMES)}")
        self._template = environment.template_class.from_code(environment, code, environment.make_globals(None))

    @property
    def privileged(self) -> bool:
        """Whether the teacher sees more than the student."""
        return self._template is not None

    @property
    def needs(self) -> frozenset[str]:
        """What it shows that no row has: names of :data:`SHOWN`."""
        return self.variables & frozenset(SHOWN)

    @property
    def trains(self) -> bool:
        """Whether a run has all that it shows: of a wrong response and of other problems only a diagnosis knows."""
        return self.needs <= {"rollout"}

    def messages(self, row: Mapping[str, Any], shown: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """The teacher's chat messages for a row.

        Args:
            row: A row as verl's dataset gives it, with ``raw_prompt``, ``reward_model`` and ``extra_info``.
            shown: What :attr:`needs` names, by name.

        Raises:
            ContextError: The row lacks something that the template uses, or has it blank; its prompt is not text; the
                template fails on it, or makes nothing of it. Does not say which row.
        """
        prompt = self._prompt(row["raw_prompt"])
        if self._template is None:
            return prompt
        values = self._values(row, prompt) | dict(shown or {})
        prompt[-1]["content"] = self._rendered(self._template, values)
        return prompt

    def _prompt(self, messages: Any) -> list[dict[str, Any]]:
        try:
            prompt = [dict(message) for message in messages]
        except (TypeError, ValueError):
            prompt = []
        if not prompt:
            raise self._error(f"the prompt must be a list of messages, with at least one, got {_kind(messages)}")
        return prompt

    def _values(self, row: Mapping[str, Any], prompt: list[dict[str, Any]]) -> dict[str, Any]:
        problem, extra_info = prompt[-1].get("content"), row.get("extra_info") or {}
        if not isinstance(problem, str):
            raise self._error(
                f"the content of the prompt's last message must be text, got {_kind(problem)}: a template knows no "
                "images or other parts. Use context: none, or data of text alone"
            )
        if not isinstance(extra_info, Mapping):
            raise self._error(f"extra_info must hold fields by name, got {_kind(extra_info)}")
        values: dict[str, Any] = {"problem": problem, "extra_info": extra_info}
        if "solution" in self.variables:
            values["solution"] = self._there(f"extra_info.{self.solution_key}", extra_info.get(self.solution_key))
        if "answer" in self.variables:
            reward_model = row.get("reward_model")
            answer = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
            values["answer"] = self._there("reward_model.ground_truth", answer)
        return values

    def _there(self, field: str, value: Any) -> Any:
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        if missing or (isinstance(value, str) and not value.strip()):
            raise self._error(f"it shows the teacher {field}, which is {'missing' if missing else 'blank'}")
        return value

    def _rendered(self, template: Template, values: dict[str, Any]) -> str:
        try:
            text = template.render(values).strip()
        except Exception as error:  # a template runs a person's code: whatever it raises is in what they wrote
            raise self._error(str(error) or type(error).__name__, self._line_of(error)) from error
        if not text:
            raise self._error("it shows the teacher nothing")
        return text

    def _line_of(self, error: BaseException) -> int | None:
        """The template's line where an exception arose: jinja puts the template's own frames into the traceback."""
        line, traceback = None, error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == self.name:
                line = traceback.tb_lineno
            traceback = traceback.tb_next
        return line

    def _error(self, problem: str, line: int | None = None) -> ContextError:
        where = f"context {self.name!r}" + (f", line {line}" if line else "")
        return ContextError(f"{where}: {' '.join(problem.split())}")


def _read(context: str) -> str:
    path = _FOLDER / f"{context}.jinja" if context in BUILTIN else Path(context)
    if not os.path.isfile(path):  # unlike Path's, also for what is no path at all
        raise ContextError(
            f"{context!r}: expected one of {', '.join(BUILTIN)}, or the path of a Jinja template; there is no such file"
        )
    try:
        source = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ContextError(f"context {context!r}: expected text in UTF-8, which byte {error.start} is not") from None
    except OSError as error:
        raise ContextError(f"context {context!r} cannot be read: {error}") from None
    if not source.strip():
        raise ContextError(f"context {context!r}: the file is empty; the teacher would be shown nothing")
    return source


def _problems(tree: nodes.Template, environment: ImmutableSandboxedEnvironment) -> Iterator[tuple[int, str]]:
    """What would fail for every row, with its line, although it is no error of syntax to jinja."""
    for kind, known, what in (
        (nodes.Filter, environment.filters, "filter"),
        (nodes.Test, environment.tests, "test"),
    ):
        for node in tree.find_all(kind):
            if node.name not in known:
                yield node.lineno, f"there is no {what} {node.name!r}. {nearest(node.name, known)}"
    for statement in tree.find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
        yield statement.lineno, "a context is one file: it cannot read another template"
    unknown = find_undeclared_variables(tree) - {*NAMES, *environment.globals}
    for name in tree.find_all(nodes.Name):
        if name.name in unknown and name.ctx == "load":
            yield name.lineno, f"{name.name!r} is undefined. {nearest(name.name, NAMES)}"
