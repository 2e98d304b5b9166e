"""Accuracy on held-out problems, sampled and scored by verl's own validation.

verl's launcher runs with the overrides of the training run and ``trainer.val_only=True``, without PACED: no teacher, no
step. So prompts, lengths, agent loops, reward and the number of GPUs are those of the run, and the numbers are those it
would have logged. Each file is a launch of its own, because verl's dump does not say which file a row comes from.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from paced_verl.evaluate import EvaluationError, check_writable, write_json
from paced_verl.evaluate.models import weights_folder
from paced_verl.launch.hydra import compose
from paced_verl.pacing.pass_rates import is_correct
from paced_verl.statistics import estimate

# Validation alone needs the student's engine and its servers; the rest of a run would only take memory.
STUDENT_ONLY = (
    "distillation.enabled=False",
    "algorithm.adv_estimator=grpo",
    "algorithm.use_kl_in_reward=False",
    "actor_rollout_ref.actor.use_kl_loss=False",
    "critic.enable=False",
    # The student's servers among the trainer's workers, whatever the mode of the run.
    "trainer.use_v1=True",
    "trainer.v1.trainer_mode=sync",
    "actor_rollout_ref.hybrid_engine=True",
    "actor_rollout_ref.rollout.nnodes=0",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=naive",
    # Validation of the given model, and nothing else.
    "trainer.val_only=True",
    "trainer.val_before_train=True",
    "trainer.resume_mode=disable",
    "trainer.logger=[console]",
    "trainer.log_val_generations=0",
    "data.val_max_samples=-1",
)


@dataclass(frozen=True)
class Problems:
    """What verl's validation found.

    Attributes:
        accuracies: float64 (problems,), the share of a problem's samples that are correct.
        missing: Samples that were asked for and that verl could not get; they count as wrong, as in verl's ``acc``.
    """

    accuracies: npt.NDArray[np.float64]
    missing: int


def read_dump(file: Path, samples: int, threshold: float) -> Problems:
    """Group a dump of verl 0.9.1's validation (``PPOTrainer._dump_generations``, JSON lines) by problem.

    Args:
        file: A row has ``score``, ``acc`` if the reward gives it, and ``uid``: problem, sample and output, joined by _.
        samples: Samples a problem that were asked for.
        threshold: A sample is correct from this ``acc`` (else ``score``) on.
    """
    correct: dict[str, dict[str, bool]] = defaultdict(dict)
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        problem, sample, _ = row["uid"].rsplit("_", 2)
        # Every output of a sample carries the score of its last.
        extra = {} if row.get("acc") is None else row
        correct[problem][sample] = is_correct(row["score"], extra, threshold)
    if not correct:
        raise EvaluationError(f"{file} is empty: verl sampled nothing.")
    most = max(len(answers) for answers in correct.values())
    if most > samples:
        raise EvaluationError(f"{file} has {most} samples of a problem, expected {samples} at most.")
    accuracies = np.array([sum(answers.values()) / samples for answers in correct.values()])
    return Problems(accuracies, len(correct) * samples - sum(len(answers) for answers in correct.values()))


def without_paced(overrides: Sequence[str]) -> list[str]:
    """The overrides that are not about PACED."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [
        text for text, override in zip(overrides, parsed, strict=True) if override.key_or_group.split(".")[0] != "paced"
    ]


def launch_arguments(
    overrides: Sequence[str],
    *,
    model: str,
    file: Path,
    folder: Path,
    samples: int,
    temperature: float,
    top_p: float,
    config_name: str = "ppo_trainer",
    config_path: Path | None = None,
) -> list[str]:
    """What follows ``python -m verl.trainer.main_ppo``.

    Raises:
        hydra.errors.HydraException: The overrides do not compose.
    """
    plain = without_paced(overrides)
    # A configuration file of one's own may name the group among its defaults.
    if "paced" in compose(plain, config_name, config_path):
        plain.append("~paced")
    sampling = "actor_rollout_ref.rollout.val_kwargs"
    chosen = [
        *plain,
        f"actor_rollout_ref.model.path={_quoted(model)}",
        f"data.val_files=[{_quoted(file.resolve())}]",
        f"{sampling}.n={samples}",
        f"{sampling}.do_sample=True",
        f"{sampling}.temperature={temperature}",
        f"{sampling}.top_p={top_p}",
        *STUDENT_ONLY,
        f"trainer.validation_data_dir={_quoted(folder.resolve())}",
        f"trainer.default_local_dir={_quoted(folder.resolve())}",
    ]
    compose(chosen, config_name, config_path)
    where = ["--config-path", str(config_path.resolve())] if config_path else []
    return [*where, "--config-name", config_name, *chosen]


def evaluate_accuracy(
    overrides: Sequence[str],
    *,
    model: str,
    data: Sequence[Path],
    out: Path,
    samples: int = 8,
    temperature: float = 0.6,
    top_p: float = 0.95,
    config_name: str = "ppo_trainer",
    config_path: Path | None = None,
) -> dict[str, Any]:
    """Mean accuracy of ``samples`` responses a problem, on every file of ``data``; the defaults are the paper's.

    Args:
        overrides: Of the training run, as given to ``python -m verl.trainer.main_ppo``.
        model: A Hugging Face folder, a checkpoint of verl, or a name on the hub.
        data: Parquet files in verl's format.
        out: The JSON file to write; responses and logs go into a folder beside it, ``<name>_files``.
        samples: Responses a problem.
        temperature, top_p: Of the sampling.
        config_name, config_path: Hydra's.

    Returns:
        What ``out`` holds: the settings, and by file ``problems``, ``accuracy`` (0–1), its ``standard_error`` and
        95 % ``interval`` over problems, ``missing_samples``, ``rows`` of the file.

    Raises:
        FileNotFoundError: No such model or file.
        EvaluationError: ``out`` cannot be written, the data is not in verl's format, or verl's launch failed.
        hydra.errors.HydraException: The overrides do not compose.
    """
    check_writable(out)
    config = compose(list(overrides), config_name, config_path)
    for file in data:
        _check_data(file, ("data_source", config.data.prompt_key, "reward_model"))
    threshold = float(OmegaConf.select(config, "paced.pass_rate.threshold", default=0.5))
    weights = weights_folder(model)
    report: dict[str, Any] = {
        "model": model,
        "weights": weights,
        "samples": samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_response_length": config.data.max_response_length,
        "threshold": threshold,
        "verl": importlib.metadata.version("verl"),
        "results": {},
    }
    for number, file in enumerate(data):
        folder = out.with_name(f"{out.stem}_files") / f"{number}-{file.stem}"
        arguments = launch_arguments(
            overrides,
            model=weights,
            file=file,
            folder=folder,
            samples=samples,
            temperature=temperature,
            top_p=top_p,
            config_name=config_name,
            config_path=config_path,
        )
        problems = read_dump(_launch(arguments, folder), samples, threshold)
        accuracy = estimate(problems.accuracies)
        report["results"][str(file)] = {
            "problems": accuracy.units,
            "accuracy": accuracy.mean,
            "standard_error": accuracy.standard_error,
            "interval": accuracy.interval,
            "missing_samples": problems.missing,
            "rows": pq.ParquetFile(file).metadata.num_rows,
            "files": str(folder),
        }
        write_json(out, report)
    return report


def _launch(arguments: list[str], folder: Path) -> Path:
    """Run verl to its end and return its dump of step 0."""
    folder.mkdir(parents=True, exist_ok=True)
    dump, log = folder / "0.jsonl", folder / "run.log"
    dump.unlink(missing_ok=True)
    print(f"verl samples {folder.name}; its log: {log}", flush=True)
    with log.open("w") as output:
        command = [sys.executable, "-m", "verl.trainer.main_ppo", *arguments]
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
    if code or not dump.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise EvaluationError(f"verl ended with code {code} and {'a' if dump.exists() else 'no'} dump; {log}:\n{tail}")
    return dump


def _check_data(file: Path, columns: Sequence[str]) -> None:
    if not file.exists():
        raise FileNotFoundError(f"--data {file} does not exist.")
    try:
        names = pq.read_schema(file).names
    except pa.ArrowInvalid as error:
        raise EvaluationError(f"--data {file}: expected a parquet file in verl's format ({error}).") from error
    missing = [name for name in columns if name not in names]
    if missing:
        raise EvaluationError(
            f"--data {file} has no column {', '.join(missing)}; it has {', '.join(names)}. "
            "Convert it to verl's format, for example with paced_verl.tasks.files.convert."
        )


def _quoted(value: object) -> str:
    """A value for Hydra's command line that may hold any character."""
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"
