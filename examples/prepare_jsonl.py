"""Your own problems, one JSON object a line, as the parquet file verl reads.

    python examples/prepare_jsonl.py problems.jsonl data/train.parquet --solution proof

with lines such as {"question": "What is 7 · 8?", "answer": "56", "proof": "7 · 8 = 7 · 7 + 7 = 56"}. `--question` and
`--answer` name other columns. `--solution` is optional; it fills extra_info.solution, which
`paced.teacher.context=solution` shows to the teacher. Without it there is no such field, and the teacher can be shown
the final answer (`paced.teacher.context=answer`) or what the student sees (`none`).

What comes out: one row a line, in verl's columns. Train on it with

    data.train_files=data/train.parquet
    reward.custom_reward_function.path=pkg://paced_verl.tasks.reward

which compares final answers as mathematics, or with a reward of your own (examples/custom_reward.py).
"""

import argparse

from paced_verl.tasks.files import convert

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("source", help="a .jsonl or .parquet file")
parser.add_argument("target", help="the .parquet file to write")
parser.add_argument("--question", default="question", help="column with the problem")
parser.add_argument("--answer", default="answer", help="column with the final answer")
parser.add_argument("--solution", help="column with a worked solution")
parser.add_argument("--data-source", default="my_problems", help="the name verl reports these problems under")
parser.add_argument("--split", default="train", help="noted in every row")

if __name__ == "__main__":
    arguments = parser.parse_args()
    print(convert(**vars(arguments)))
    if arguments.solution is None:
        print("No expert solutions: paced.teacher.context=none and answer work with these data, solution does not.")
