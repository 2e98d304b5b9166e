"""What becomes of verl's own example scripts with one more word, under the installed verl.

    python scripts/check_examples.py FOLDER                 # e.g. the folder examples of a checkout of verl
    python scripts/check_examples.py FOLDER --write         # and the table into docs/support.md
    python scripts/check_examples.py FOLDER --json FILE     # and the arguments of every script into a file

The arguments of each script's last `python -m verl.trainer.main_ppo …` are taken as bash makes them (nothing is run,
see bash_calls.py) and composed with each of three words. Data and models are not looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import verl.trainer
from bash_calls import Calls, calls
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import track
from rich.table import Table

from paced_verl.config import ConfigError
from paced_verl.launch.hydra import compose, describe

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "docs" / "support.md"
START, END = "<!-- scripts/check_examples.py -->", "<!-- end -->"

ENTRY = "verl.trainer.main_ppo"
TEACHER = (
    "distillation.teacher_models.teacher_model.model_path=TEACHER",
    "distillation.n_gpus_per_node=8",
    "distillation.nnodes=1",
)
WORDS = {
    "two_stage": ("+paced=two_stage",),
    "self_distillation": ("+paced=self_distillation", "paced.teacher.context=answer"),
    "advantage": ("+paced=advantage", "actor_rollout_ref.ref.teacher_path=TEACHER"),
}
"""What is added to a script for each word. ``two_stage`` also gets ``TEACHER`` where the script names none."""


VERLS = "verl would refuse this: "


@dataclass(frozen=True)
class Result:
    """What a script with a word gets.

    Attributes:
        verdict: ``runs``, ``refused``, or ``TRACEBACK``: an exception that is no refusal.
        said: The plan, the refusal (one problem a line), or the exception.
    """

    verdict: str
    said: str

    def __str__(self) -> str:
        if self.verdict == "runs":
            return f"runs ({self.count('replaced')} replaced, {self.count('ignored')} ignored)"
        return f"{self.verdict}: {self.said}"

    def count(self, what: str) -> int:
        """Settings that the plan says were ``replaced``, or are ``ignored``."""
        return len(re.findall(rf"^ *{what}: ", self.said, re.M))

    @property
    def clause(self) -> str:
        """The result without the advice, and with the first of several problems."""
        if self.verdict == "runs":
            return str(self)
        first, *others = self.said.splitlines() or [""]
        first, by_verl = first.removeprefix(VERLS), " by verl" * first.startswith(VERLS)
        parts = re.split(r": |[.;,] |\.$", first)
        clause = parts[0] if "=" in parts[0] else ": ".join(filter(None, parts[:2]))  # what is wrong, not only where
        return f"{self.verdict}{by_verl}: {clause}" + (f" (+{len(others)})" if others else "")


@dataclass(frozen=True)
class Example:
    """A script that composes without us: engines of training and generation, a result for each word, a remark."""

    engine: str
    results: dict[str, Result]
    remark: str


def launch(script: Calls) -> list[str] | None:
    """Arguments of the last launch of verl's PPO trainer."""
    for command in reversed(script.commands):
        if ENTRY in command:
            return command[command.index(ENTRY) + 1 :]
    return None


def another(script: Calls) -> str:
    """Why a script launches no PPO trainer; what comes before the colon is counted."""
    modules = [word for command in script.commands for word in command if re.fullmatch(r"verl\w*(\.\w+)+", word)]
    return f"have another entry point: {modules[-1]}" if modules else f"launch nothing as they are: {script.trouble}"


def composed(arguments: list[str], added: tuple[str, ...] = ()) -> DictConfig:
    """The configuration of ``python -m verl.trainer.main_ppo ARGUMENTS``, Hydra's own ones among them.

    Raises:
        HydraException, OmegaConfBaseException: It does not compose.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-name", "-cn", default="ppo_trainer")
    parser.add_argument("--config-path", "-cp", default="config")
    hydras, overrides = parser.parse_known_args(arguments)
    # Hydra reads the path as seen from the launcher's own folder.
    path = Path(verl.trainer.__path__[0]) / hydras.config_path
    return compose([*overrides, *added], hydras.config_name.removesuffix(".yaml"), path)


def added(arguments: list[str], word: str) -> tuple[str, ...]:
    """What is put behind a script's arguments for a word."""
    named = any(re.match(r"\+*distillation\.teacher_models\.\w+\.model_path=", argument) for argument in arguments)
    return (*WORDS[word], *(TEACHER if word == "two_stage" and not named else ()))


def judge(arguments: list[str], word: str) -> Result:
    """What a script's arguments get with a word behind them."""
    try:
        return Result("runs", describe(composed(arguments, added(arguments, word)), files=False))
    except ConfigError as error:
        return Result("refused", str(error))
    except Exception as error:  # the table is to show whatever a user would meet
        return Result("TRACEBACK", f"{type(error).__name__}: {' '.join(str(error).split())}")


def engines(config: DictConfig) -> str:
    """What trains, and what generates."""
    return f"{config.actor_rollout_ref.actor.strategy}, {config.actor_rollout_ref.rollout.name}"


def remark(name: str, arguments: list[str]) -> str:
    """What only the data would tell."""
    named = "vl" in re.split(r"[^a-z]", name.lower())
    images = named or any(re.match(r"\+*data\.(image|video)_key=", argument) for argument in arguments)
    return "images, refused when the data are read" if images else ""


def examine(name: str, arguments: list[str]) -> Example:
    """Compose a script without us and with every word.

    Raises:
        HydraException, OmegaConfBaseException: It does not even compose without us.
    """
    engine = engines(composed(arguments))
    return Example(engine, {word: judge(arguments, word) for word in WORDS}, remark(name, arguments))


def is_ours(engine: str) -> bool:
    """Whether the plugin can run under these engines at all."""
    return engine in ("fsdp, vllm", "fsdp2, vllm")


def sums(examples: dict[str, Example]) -> list[str]:
    """A line for each word: how many scripts of FSDP and vLLM, and of other engines, get which verdict."""
    lines = []
    for word in WORDS:
        ours, others = (
            Counter(e.results[word].verdict for e in examples.values() if is_ours(e.engine) == with_ours)
            for with_ours in (True, False)
        )
        lines.append(f"`{word}`: FSDP + vLLM {_counted(ours)}; other engines {_counted(others)}")
    return lines


def _counted(verdicts: Counter[str]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())) or "none"


def as_markdown(examples: dict[str, Example], apart: dict[str, str]) -> str:
    """The part of docs/support.md between its markers."""
    lines = [
        START,
        "",
        "## verl's own example scripts",
        "",
        "What the scripts of a checkout's `examples/` get when a word is put behind their arguments. Written by",
        "`python scripts/check_examples.py FOLDER --write`, which prints the whole messages. A script that names no",
        f"teacher gets one with `two_stage`: `{' '.join(TEACHER)}`.",
        f"`self_distillation` goes with `{WORDS['self_distillation'][1]}`, `advantage` with",
        f"`{WORDS['advantage'][1]}`. Data and models are not looked at.",
        "",
        *(f"- {line}" for line in sums(examples)),
        f"- Not in the table: {_grouped(apart)}.",
        "",
        f"| script | engine | {' | '.join(f'`{word}`' for word in WORDS)} | remark |",
        f"|---|---|{'---|' * len(WORDS)}---|",
    ]
    for name, example in examples.items():
        results = " | ".join(example.results[word].clause.replace("|", "\\|") for word in WORDS)
        lines.append(f"| `{name}` | {example.engine} | {results} | {example.remark} |")
    return "\n".join([*lines, "", END, ""])


def _grouped(apart: dict[str, str]) -> str:
    reasons = Counter(reason.split(":")[0] for reason in apart.values())
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def write(part: str) -> None:
    """Put the part in the place of the one that docs/support.md has, or behind it."""
    text = SUPPORT.read_text()
    before, _, rest = text.partition(START)
    SUPPORT.write_text(before.rstrip("\n") + "\n\n" + part + rest.partition(f"{END}\n")[2])


def as_table(examples: dict[str, Example]) -> Table:
    table = Table("script", "engine", *WORDS, "remark", show_lines=True)
    for name, example in examples.items():
        table.add_row(name, example.engine, *map(str, example.results.values()), example.remark)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="write the table into docs/support.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the arguments of every script into a file")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    os.environ.pop("VERL_PLATFORM", None)  # the scripts are for GPUs, whatever this machine has
    arguments, examples, apart = {}, {}, {}
    scripts = sorted(options.folder.rglob("*.sh")) or sys.exit(f"No scripts (*.sh) under {options.folder}")
    for script in track(scripts, "scripts", console=Console(stderr=True)):
        name, called = str(script.relative_to(options.folder)), calls(script)
        given = launch(called)
        if given is None:
            apart[name] = another(called)
            continue
        # Not where this checkout is.
        arguments[name] = [word.replace(str(options.folder.resolve().parent), "VERL") for word in given]
        try:
            examples[name] = examine(name, arguments[name])
        except (HydraException, OmegaConfBaseException) as error:
            apart[name] = f"do not compose under the installed verl: {' '.join(str(error).split())}"
    console.print(as_table(examples), markup=False)
    console.print("\n".join([*(f"{name}: {why}" for name, why in apart.items()), "", *sums(examples)]), markup=False)
    if options.json:
        options.json.write_text(json.dumps(arguments, indent=1) + "\n")
    if options.write:
        write(as_markdown(examples, apart))


if __name__ == "__main__":
    main()
