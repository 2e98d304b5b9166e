"""What every block of a configuration is made of: strict types with ranges, and problems as one line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from typing_extensions import Self

from paced_verl.errors import PacedError, nearest

# A number is no text and no boolean, and finite; an integer is a number. Bounds only keep out what cannot be meant.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]

Fraction = Annotated[Number, Field(ge=0, le=1)]
Share = Annotated[Number, Field(gt=0, le=1)]
Exponent = Annotated[Number, Field(ge=0, le=30)]
Factor = Annotated[Number, Field(ge=0, le=1e6)]
PositiveFactor = Annotated[Number, Field(ge=1e-6, le=1e6)]
PriorCount = Annotated[Number, Field(ge=1e-3, le=1e4)]
"""As far as `fit_prior` goes and more; with these exponents every posterior weight is above 0 in float64."""
Temperature = Annotated[Number, Field(ge=0, le=10)]
Steps = Annotated[Whole, Field(ge=1, le=10**9)]
Price = Annotated[Number, Field(ge=0, le=1e9)]


class ConfigError(PacedError):
    """A configuration that cannot run as written. The message is for the person who wrote it."""


class Block(BaseModel):
    """Keys with values, in a configuration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, block: Any, root: str) -> Self:
        """Check a block.

        Args:
            block: A mapping, of OmegaConf or plain.
            root: The key it stands under.

        Raises:
            ConfigError: With one line a problem.
        """
        try:
            if OmegaConf.is_config(block):
                block = OmegaConf.to_container(block, resolve=True, throw_on_missing=True)
            return cls.model_validate(block)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{error.full_key or root}: {str(error).splitlines()[0].rstrip('.')}.") from None
        except ValidationError as error:
            lines = [explain(problem, cls, root) for problem in _own_problems(error)]
            raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _own_problems(error: ValidationError) -> list[Any]:
    """All problems but pydantic's echoes: a wrong stage is left out of the schedule, which is then too short."""
    problems = error.errors()
    places = [problem["loc"] for problem in problems]

    def is_echo(problem: Any) -> bool:
        place = problem["loc"]
        return problem["type"] == "too_short" and any(p != place and p[: len(place)] == place for p in places)

    return [problem for problem in problems if not is_echo(problem)]


def explain(problem: Any, model: type[BaseModel], root: str) -> str:
    """One problem of pydantic's as one line: key, value, what is wrong, what to do.

    Args:
        problem: One of ``ValidationError.errors()``.
        model: The block that was checked.
        root: The key it stands under.
    """
    location = [part for part in problem["loc"] if not str(part).startswith((":", "["))]  # tags of a union, "[key]"
    path = ".".join([root, *map(str, location)])
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        known = _keys(_model_at(model, location[:-1]))
        return f"{path} is not a key that anything reads. {nearest(str(location[-1]), known)}"
    if problem["type"] == "missing":
        return f"{path} is missing."
    value = problem["input"]
    shown = "" if isinstance(value, Mapping | BaseModel) else f"={_written(value)}"
    expected = _expected(problem, _model_at(model, location))
    return f"{path}{shown}: {expected}" + ("" if expected.endswith((".", "?")) else ".")


_EXPECTED = {
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "string_too_short": "expected text, not nothing",
    "string_pattern_mismatch": "expected an address such as https://host/v1",
    "tuple_type": "expected a list",
    "dict_type": "expected keys with values: {{key: value}}",
    "too_short": "expected a list of {min_length} or more",
    "too_long": "expected a list of {max_length}",
}


def _expected(problem: Any, model: type[BaseModel]) -> str:
    """What a problem's key should have held, in this file's words."""
    if problem["type"] == "model_type":
        return f"expected a block with the keys {', '.join(_keys(model))}"
    if problem["type"] in _EXPECTED:
        return _EXPECTED[problem["type"]].format(**problem.get("ctx", {}))
    words: str = problem["msg"].removeprefix("Value error, ")
    for bound in ("greater", "less"):
        words = words.replace(f"Input should be {bound}", f"expected a number {bound}")
    return words.replace("Input should be", "expected")


def _written(value: Any, most: int = 200) -> str:
    """A value as YAML would have it, on one line."""
    words = [word for plain, word in ((None, "null"), (True, "true"), (False, "false")) if value is plain]
    text = words[0] if words else repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def _keys(model: type[BaseModel]) -> list[str]:
    """The keys of a block, as they are written."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_at(model: type[BaseModel], location: Sequence[Any]) -> type[BaseModel]:
    """The block at a place within a block, or the nearest around it."""
    for part in location:
        field = next((field for name, field in model.model_fields.items() if part in (name, field.alias)), None)
        model = (field and _model_in(field.annotation)) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The block that a field holds, through unions, tuples and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)
