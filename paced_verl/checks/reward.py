"""The reward function: that it can be imported, and that it scores a wrong answer to a row of each data source."""

from __future__ import annotations

import asyncio
import copy
import difflib
import inspect
import math
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsFloat

from omegaconf import DictConfig
from verl.experimental.reward_loop.reward_loop import migrate_legacy_reward_impl
from verl.trainer.ppo.reward import get_custom_reward_fn, resolve_reward_manager_cls
from verl.utils.import_utils import load_module
from verl.utils.reward_score import default_compute_score

from paced_verl.checks.data import describe_error
from paced_verl.checks.scan import Rows

LIMIT_S = 30.0
"""Seconds that all calls together may take: some rewards ask a model."""
WRONG = "I do not know."
PATH, NAME = "reward.custom_reward_function.path", "reward.custom_reward_function.name"


def migrated(config: DictConfig) -> DictConfig:
    """A configuration with verl's older reward keys (``custom_reward_function`` at the top) where verl moves them."""
    return migrate_legacy_reward_impl(copy.deepcopy(config)) if "reward_model" in config else config


def reward_function(config: DictConfig, rows: Rows, limit_s: float = LIMIT_S) -> Iterator[str]:
    """Problems of the reward function, found by calling it.

    Args:
        config: verl's whole configuration, migrated.
        rows: What a pass over the data found: a row of each data source.
        limit_s: Seconds to wait for it; one that does not answer is said, not refused.
    """
    manager, custom = config.reward.reward_manager, config.reward.custom_reward_function
    try:
        resolve_reward_manager_cls(config)
    except Exception as error:
        yield f"reward.reward_manager.name={manager.name}: verl has no such reward manager ({describe_error(error)})."
        return
    problems = list(_importable(config)) if custom.path else []
    yield from problems
    # With a reward model, a function of the user's asks a server that does not run yet.
    if problems or config.reward.reward_model.enable or manager.source == "importlib":
        return
    if config.reward.sandbox_fusion.url and not custom.path:
        return
    try:
        function = get_custom_reward_fn(config) or default_compute_score
    except (TypeError, ValueError) as error:
        yield f"reward.custom_reward_function.reward_kwargs: expected keyword arguments ({describe_error(error)})."
        return
    yield from _called(function, rows, custom, limit_s)


def _importable(config: DictConfig) -> Iterator[str]:
    custom = config.reward.custom_reward_function
    if not custom.name:
        yield f"{NAME}={custom.name}: which function of {custom.path} is it? verl's default is compute_score."
        return
    try:
        module = load_module(custom.path)
    # SystemExit: a script without a main guard.
    except (Exception, SystemExit) as error:
        yield f"{PATH}={custom.path} cannot be imported: {describe_error(error.__cause__ or error)}{_where(error)}."
        return
    function = getattr(module, custom.name, None)
    if function is None:
        near = difflib.get_close_matches(custom.name, vars(module), n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        yield f"{NAME}={custom.name}: {custom.path} has no such function.{meant}"
    elif not callable(function):
        yield f"{NAME}={custom.name}: in {custom.path} that is {type(function).__name__}, not a function."


def _called(function: Callable[..., Any], rows: Rows, custom: Mapping[str, Any], limit_s: float) -> Iterator[str]:
    answers: dict[Any, Any] = {}
    # A thread, as verl calls it in one; a daemon, as it may never come back.
    thread = threading.Thread(target=_call_all, args=(function, rows.examples, answers), daemon=True)
    thread.start()
    thread.join(limit_s)
    name = f"{custom['name']} of {custom['path']}" if custom["path"] else "verl's own reward function"
    for source, row in rows.examples.items():
        if source not in answers:
            print(
                f"[paced] {name} has not answered within {limit_s:g} s for data_source={source}: not checked.",
                flush=True,
            )
        elif problem := _problem(answers[source], custom):
            yield f"{name} {problem}. It was called with data_source={source!r}, {_shown(row)}."


def _call_all(function: Callable[..., Any], examples: Mapping[Any, dict[str, Any]], answers: dict[Any, Any]) -> None:
    for source, row in examples.items():
        try:
            answers[source] = _call(function, source, row)
        except BaseException as error:  # an exit in it, too, is an answer
            answers[source] = error


def _call(function: Callable[..., Any], source: Any, row: Mapping[str, Any]) -> Any:
    """As ``verl.experimental.reward_loop.reward_manager.naive`` calls it."""
    extra_info = {**(row.get("extra_info") or {}), "num_turns": 2, "rollout_reward_scores": {}}
    result = function(
        data_source=source,
        solution_str=WRONG,
        ground_truth=(row.get("reward_model") or {}).get("ground_truth"),
        extra_info=extra_info,
    )
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result


def _problem(answer: Any, custom: Mapping[str, Any]) -> str | None:
    """What is wrong with what the function gave or raised, as the rest of a sentence."""
    if isinstance(answer, NotImplementedError) and not custom["path"]:
        return (
            f"does not know these data: {answer}; name one that does ({PATH}, pkg://paced_verl.tasks.reward for maths)"
        )
    if isinstance(answer, BaseException):
        if isinstance(answer, OSError) and answer.filename is None:
            print(f"[paced] the reward function could not reach what it asks ({describe_error(answer)}): not checked.")
            return None
        return f"raises {describe_error(answer)}{_where(answer)}"
    if isinstance(answer, Mapping):
        if "score" not in answer:
            return f"returns a dict without score: {dict(answer)}"
        wrong = {key: answer[key] for key in ("score", "acc") if key in answer and not _is_number(answer[key])}
        return f"returns {wrong}, expected finite numbers" if wrong else None
    if not _is_number(answer):
        return f"returns {answer!r}, expected a finite number, or a dict with score"
    return None


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, SupportsFloat) and math.isfinite(value)
    except (TypeError, ValueError):
        return False


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def _shown(row: Mapping[str, Any]) -> str:
    return f"the answer {WRONG!r} and ground_truth={(row.get('reward_model') or {}).get('ground_truth')!r}"
