"""Make a tiny teacher and student for runs on a CPU: a byte-level tokenizer and two small Qwen3 models.

    python scripts/tiny_models.py --preset full --out runs/tiny --measure

writes ``data/`` (train.parquet, test.parquet), ``teacher/`` and ``student/`` (Hugging Face folders). Both models learn
the same reasoning-gym problems from worked solutions; the student is smaller and stops early, so that its pass rates
spread from 0 to 1. What is already there is used again, unless ``--fresh``.

With ``--recipe self_distillation`` there is no teacher: the student itself is one when its prompt shows the solution.
A large model can read; this one must learn to. Most of its examples show the solution as the run will, the others are
plain problems, and it stops early at these.
"""

import argparse
import json
import shutil
import time
from dataclasses import dataclass, replace
from itertools import cycle, islice, takewhile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from paced_verl.tasks.reasoning_gym import prepare, problems
from paced_verl.tasks.reward import compute_score
from paced_verl.teacher.context import TeacherContext

# The end of a turn is named as in Qwen3's own vocabulary: verl looks the name up for every Qwen3 model.
PAD, END, ROLES = "<|pad|>", "<|im_end|>", ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
IGNORE = -100
MARK = "|"  # stands where a row's own text would, to find the words around it
BATCH = 32


@dataclass(frozen=True)
class Learner:
    """One model.

    Attributes:
        hidden, layers: Its size.
        steps, seconds, until: How long it learns: so many steps, or to this loss, within so many seconds.
        seen: Family → the settings of what it learns from; all of the data's by default. What it has not seen is out of
            its reach.
    """

    hidden: int
    layers: int
    steps: int
    seconds: float
    learning_rate: float
    until: float = 0.0
    seen: dict[str, dict[str, Any]] | None = None


@dataclass(frozen=True)
class Preset:
    """A data set and the models that go with it.

    Attributes:
        families: reasoning-gym family → its settings.
        train, test: Rows of the two files.
        turns, held_out: See :func:`~paced_verl.tasks.reasoning_gym.prepare`.
        student: Learns from plain problems, and from problems under ``context``.
        teacher: ``None`` if the student under ``context`` is the teacher.
        context: Of the run's teacher, see :class:`TeacherContext`.
        plain_every: One in so many of the student's examples is plain; a divisor of ``BATCH``.
    """

    families: dict[str, dict[str, Any]]
    train: int
    test: int
    student: Learner
    teacher: Learner | None = None
    context: str = "none"
    plain_every: int = 1
    turns: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()

    @property
    def learners(self) -> dict[str, Learner]:
        """The models by name."""
        return ({"teacher": self.teacher} if self.teacher else {}) | {"student": self.student}


WORDS = {"min_word_len": 3, "max_word_len": 8}  # spell_backward

PRESETS = {
    # Words are what the student is to become better at. A third of the training problems are sums: the teacher knows
    # how, and the student, which has never seen one, cannot learn it in the time.
    ("two_stage", "full"): Preset(
        families={"spell_backward": WORDS, "chain_sum": {"min_terms": 2, "max_terms": 4, "max_digits": 1}},
        turns=("spell_backward", "spell_backward", "chain_sum"),
        held_out=("spell_backward",),
        train=4096,
        test=512,
        teacher=Learner(hidden=160, layers=2, steps=700, seconds=90, learning_rate=3e-3),
        student=Learner(
            hidden=128,
            layers=2,
            steps=1000,
            seconds=60,
            learning_rate=5e-3,
            until=0.25,
            seen={"spell_backward": WORDS},
        ),
    ),
    ("two_stage", "test"): Preset(
        families={"spell_backward": {"min_word_len": 3, "max_word_len": 5}},
        train=64,
        test=16,
        # About ten seconds each. The limit is far away: on a busy machine they would be other models.
        teacher=Learner(hidden=96, layers=2, steps=300, seconds=120, learning_rate=5e-3),
        student=Learner(hidden=64, layers=2, steps=500, seconds=120, learning_rate=5e-3, until=0.2),
    ),
    # Finding the solution in a prompt takes a layer more than spelling backwards.
    ("self_distillation", "full"): Preset(
        families={"spell_backward": WORDS},
        train=4096,
        test=512,
        student=Learner(hidden=64, layers=3, steps=800, seconds=120, learning_rate=5e-3, until=0.25),
        context="solution",
        plain_every=8,
    ),
    ("self_distillation", "test"): Preset(
        families={"spell_backward": {"min_word_len": 3, "max_word_len": 5}},
        train=64,
        test=16,
        student=Learner(hidden=64, layers=3, steps=500, seconds=30, learning_rate=5e-3, until=0.25),
        context="solution",
        plain_every=4,
    ),
}


def messages(problem: dict[str, Any], context: TeacherContext) -> list[dict[str, Any]]:
    """The chat messages of a problem (of :func:`problems`) as a run shows them to who sees ``context``."""
    return context.messages(
        {
            "raw_prompt": [{"role": "user", "content": problem["question"]}],
            "reward_model": {"ground_truth": problem["answer"]},
            "extra_info": {"solution": problem["solution"]},
        }
    )


def make_tokenizer(families: dict[str, dict[str, Any]], context: TeacherContext) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer; the instruction of each family is one token, since it says nothing beyond the family.

    So are the words that ``context`` puts around every solution.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, END, *ROLES])
    for name, settings in families.items():
        questions = [problem["question"] for problem in islice(problems(name, settings, seed=0), 64)]
        shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*questions, strict=False))
        tokenizer.add_tokens([AddedToken("".join(letters[0] for letters in shared), normalized=False)])
    if context.privileged:
        shown = messages({"question": MARK, "answer": MARK, "solution": MARK}, context)[-1]["content"]
        words = max(shown.split(MARK), key=len).strip()
        tokenizer.add_tokens([AddedToken(words, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, padding_side="left", chat_template=CHAT_TEMPLATE
    )


def make_model(tokenizer: PreTrainedTokenizerFast, learner: Learner) -> Qwen3ForCausalLM:
    """A fresh Qwen3 model with heads of 32, a size vLLM's CPU attention knows."""
    heads = learner.hidden // 32
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=-(-len(tokenizer) // 64) * 64,
            hidden_size=learner.hidden,
            intermediate_size=3 * learner.hidden,
            num_hidden_layers=learner.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=32,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    return model


def make_examples(
    tokenizer: PreTrainedTokenizerFast, preset: Preset, learner: Learner, exclude: set[str], seed: int
) -> list[tuple[list[int], int]]:
    """Token ids of prompt and worked solution, with the prompt's length; no question of ``exclude`` is among them."""
    seen = preset.families if learner.seen is None else learner.seen
    streams = {name: problems(name, settings, seed) for name, settings in seen.items()}
    size = BATCH * learner.steps
    drawn = (next(streams[name]) for name in cycle(seen))
    kept = list(islice((problem for problem in drawn if problem["question"] not in exclude), size))
    contexts = [TeacherContext(preset.context)] * preset.plain_every
    contexts[0] = TeacherContext()
    shown = [messages(problem, context) for problem, context in zip(kept, cycle(contexts), strict=False)]
    prompts = tokenizer(tokenizer.apply_chat_template(shown, add_generation_prompt=True, tokenize=False))["input_ids"]
    answers = tokenizer([problem["solution"] + END for problem in kept])["input_ids"]
    return [(prompt + answer, len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]


def train(
    model: Qwen3ForCausalLM, examples: list[tuple[list[int], int]], learner: Learner, plain_every: int = 1
) -> None:
    """Plain SFT on the worked solutions with AdamW and a cosine decay; ``until`` is of the plain examples' loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learner.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    start, step, done, smooth = time.monotonic(), 0, 0.0, 10.0
    while done < 1.0:
        chosen = examples[step * BATCH : (step + 1) * BATCH]
        width = max(len(ids) for ids, _ in chosen)
        inputs = torch.zeros(BATCH, width, dtype=torch.long)
        labels = torch.full((BATCH, width), IGNORE)
        for row, (ids, prompt) in enumerate(chosen):
            inputs[row, : len(ids)] = torch.tensor(ids)
            labels[row, prompt : len(ids)] = torch.tensor(ids[prompt:])
        for group in optimizer.param_groups:
            warm, cool = min(1.0, (step + 1) / 50), 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done)).item())
            group["lr"] = learner.learning_rate * warm * max(cool, 0.02)
        # Padding is on the right, where causal attention keeps it from every token that has a label.
        output = model(input_ids=inputs, labels=labels)
        output.loss.backward()
        logits, targets = output.logits[::plain_every, :-1].detach(), labels[::plain_every, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        smooth = 0.9 * smooth + 0.1 * loss.item()
        seconds = time.monotonic() - start
        done = 1.0 if smooth < learner.until else max(step / learner.steps, seconds / learner.seconds)
        if step % 100 == 0 or done >= 1.0:
            print(f"  step {step:5d}  {seconds:5.1f} s  loss {smooth:.3f}", flush=True)
    model.eval()


@torch.no_grad()
def sample(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    samples: int,
    temperature: float,
    context: TeacherContext,
    max_new_tokens: int = 64,
) -> torch.Tensor:
    """Score ``samples`` responses to each row (greedy at temperature 0): a rows × samples tensor of 0 and 1."""
    shown = [context.messages(row | {"raw_prompt": row["prompt"]}) for row in rows]
    prompts = tokenizer.apply_chat_template(shown, add_generation_prompt=True, tokenize=False)
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    chosen = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    output = model.generate(**encoded, num_return_sequences=samples, max_new_tokens=max_new_tokens, **chosen)
    texts = tokenizer.batch_decode(output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    scores = [
        compute_score(row["data_source"], text, row["reward_model"]["ground_truth"], row["extra_info"])["acc"]
        for row, text in zip((row for row in rows for _ in range(samples)), texts, strict=True)
    ]
    return torch.tensor(scores).view(len(rows), samples)


def measure(folder: Path, name: str, context: TeacherContext, samples: int = 8) -> float:
    """Print a model's greedy accuracy and the histogram of its pass rates on held-out problems; returns their mean."""
    model = Qwen3ForCausalLM.from_pretrained(folder / name)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / name)
    rows = pq.read_table(folder / "data" / "test.parquet").to_pylist()
    size = sum(p.numel() for p in model.parameters()) / 1e6
    sees = "a solution in view" if context.privileged else "the problem alone"
    print(f"{name}, {sees}: {size:.2f} M parameters, {len(rows)} held-out problems")
    right = 0
    for source in sorted({row["data_source"] for row in rows}):
        part = [row for row in rows if row["data_source"] == source]
        greedy = sample(model, tokenizer, part, 1, 0.0, context).mean().item()
        passes = sample(model, tokenizer, part, samples, 1.0, context).sum(dim=1).long()
        histogram = " ".join(str(count) for count in torch.bincount(passes, minlength=samples + 1).tolist())
        mean = passes.float().mean().item() / samples
        print(f"  {source}: greedy {greedy:.2f}, pass rate {mean:.2f}, problems with 0…{samples} passes: {histogram}")
        right += int(passes.sum())
    return right / samples / len(rows)


def measure_all(folder: Path, preset: Preset, seed: int) -> None:
    """Measure the student, and the teacher under its context; ``accuracy.json`` gets both pass rates."""
    torch.manual_seed(seed)
    student = measure(folder, "student", TeacherContext())
    teacher = measure(folder, "teacher" if preset.teacher else "student", TeacherContext(preset.context))
    (folder / "accuracy.json").write_text(json.dumps({"student": student, "teacher": teacher}))


def build(out: Path, preset: Preset, seed: int, fresh: bool) -> None:
    """Write the data and the models that are not yet under ``out``."""
    if fresh or not (out / "data" / "test.parquet").exists():
        prepare(preset.families, preset.train, preset.test, seed, out / "data", preset.turns, preset.held_out)
    missing = {name: learner for name, learner in preset.learners.items() if fresh or not (out / name).exists()}
    if not missing:
        return
    tokenizer = make_tokenizer(preset.families, TeacherContext(preset.context))
    test = pq.read_table(out / "data" / "test.parquet").to_pylist()
    exclude = {row["prompt"][0]["content"] for row in test}
    for name, learner in missing.items():
        print(f"{name}: training for at most {learner.seconds:.0f} s")
        examples = make_examples(tokenizer, preset, learner, exclude, seed=seed + 1_000_000)
        torch.manual_seed(seed)
        model = make_model(tokenizer, learner)
        train(model, examples, learner, preset.plain_every)
        unfinished = out / f".{name}"  # a model that is there is whole, however this ends
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        shutil.rmtree(out / name, ignore_errors=True)
        unfinished.rename(out / name)


def main() -> None:
    """Read the command line, build what is missing, and measure it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted({recipe for recipe, _ in PRESETS}), default="two_stage")
    parser.add_argument("--preset", choices=sorted({size for _, size in PRESETS}), default="full")
    parser.add_argument("--out", type=Path, help="default: runs/tiny/<recipe>-<preset>")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher-seconds", type=float, help="time limit of the teacher's training")
    parser.add_argument("--student-seconds", type=float, help="time limit of the student's training")
    parser.add_argument("--fresh", action="store_true", help="make everything again")
    parser.add_argument("--measure", action="store_true", help="print accuracies and pass rates on held-out problems")
    args = parser.parse_args()

    # More threads mostly wait for each other at these sizes, and badly so when the machine has other work.
    torch.set_num_threads(1)
    disable_progress_bar()
    preset = PRESETS[args.recipe, args.preset]
    if args.teacher_seconds:
        if preset.teacher is None:
            parser.error(f"--teacher-seconds: --recipe {args.recipe} trains no teacher")
        preset = replace(preset, teacher=replace(preset.teacher, seconds=args.teacher_seconds))
    if args.student_seconds:
        preset = replace(preset, student=replace(preset.student, seconds=args.student_seconds))
    out = args.out or Path("runs") / "tiny" / f"{args.recipe}-{args.preset}"
    build(out, preset, args.seed, args.fresh)
    if args.measure:
        measure_all(out, preset, args.seed)


if __name__ == "__main__":
    main()
