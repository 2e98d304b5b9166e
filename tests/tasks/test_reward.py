"""The reward: right answers score 1, wrong ones 0, and nothing a model writes raises."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paced_verl.tasks import reward
from paced_verl.tasks.reward import MissingJudgeError, compute_score, extract_answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("nus", "nus"),
        ("4-1=3;3-7=-4", "-4"),
        ("so 2+2=4\nAnswer: 4\nDone.", "4"),
        ("Answer: 3. No. Answer:  7 ", "7"),
        ("x =", ""),
        ("", ""),
    ],
)
def test_extract_answer(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("source", "response", "truth", "score"),
    [
        ("reasoning_gym/spell_backward", "nus", "nus", 1.0),
        ("reasoning_gym/spell_backward", " Nus\n", "nus", 1.0),
        ("reasoning_gym/spell_backward", "sun", "nus", 0.0),
        ("reasoning_gym/spell_backward", "nuss", "nus", 0.0),
        ("reasoning_gym/chain_sum", "4-1=3;3-7=-4", "-4", 1.0),
        ("reasoning_gym/chain_sum", "= 1,020.0", "1020", 1.0),
        ("reasoning_gym/chain_sum", "4-1=3;3-7=4", "-4", 0.0),
        ("reasoning_gym/gcd", "Answer: 12", "12", 1.0),
        ("reasoning_gym/gcd", "Answer: 13", "12", 0.0),
        ("my_maths", "The total is 3 * 4 = 12", "12", 1.0),
        ("my_maths", "The total is 3 * 4 = 13", "12", 0.0),
    ],
)
def test_compute_score(source, response, truth, score):
    assert compute_score(source, response, truth) == {"score": score, "acc": score}


def test_a_family_with_many_right_answers_is_judged_by_reasoning_gym():
    reasoning_gym = pytest.importorskip("reasoning_gym")
    dataset = reasoning_gym.create_dataset("palindrome_generation", seed=0, size=1)
    entry = dataset[0]
    letters = entry["answer"][: len(entry["answer"]) // 2]
    middle = entry["answer"][len(letters) : len(entry["answer"]) - len(letters)]
    other = letters[::-1] + middle + letters
    extra = {"metadata": json.dumps(entry["metadata"])}
    assert other != entry["answer"]
    assert compute_score("reasoning_gym/palindrome_generation", other, entry["answer"], extra)["acc"] == 1.0
    assert compute_score("reasoning_gym/palindrome_generation", other + "q", entry["answer"], extra)["acc"] == 0.0


def test_maths_is_judged_by_meaning_also_in_a_worker_thread():
    pytest.importorskip("math_verify")
    with ThreadPoolExecutor(1) as pool:
        scored = pool.submit(compute_score, "my_maths", "so it is $\\frac{1}{2}$", "0.5")
    assert scored.result()["acc"] == 1.0


@pytest.mark.parametrize(
    ("module", "judge", "source"),
    [
        ("math_verify", "math-verify", "my_maths"),
        ("reasoning_gym.factory", "reasoning-gym", "reasoning_gym/countdown"),
    ],
)
def test_an_answer_is_not_wrong_because_its_judge_is_missing(monkeypatch, module, judge, source):
    monkeypatch.setitem(sys.modules, module, None)
    reward._family.cache_clear()
    assert compute_score(source, "Answer: 0.5", "0.5")["acc"] == 1.0, "equal answers need no judge"
    with pytest.raises(MissingJudgeError, match=rf"{judge} judges .*pip install 'paced-verl\[tasks\]'"):
        compute_score(source, "Answer: 1/2", "0.5")


@given(
    source=st.sampled_from(["reasoning_gym/spell_backward", "reasoning_gym/chain_sum", "reasoning_gym/countdown"]),
    response=st.text(max_size=60),
)
def test_junk_scores_zero_and_never_raises(source, response):
    assert compute_score(source, response + "?", "17")["acc"] == 0.0


def test_import_is_light():
    """Every reward worker loads the module: it must not pull in torch, verl or reasoning-gym."""
    heavy = "('torch', 'verl', 'reasoning_gym', 'math_verify')"
    code = f"import sys, paced_verl.tasks.reward; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
