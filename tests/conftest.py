"""The tests run on verl's CPU platform, which must be chosen before verl is imported."""

import os

import yaml

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A configuration of verl is some thirty files, and hundreds are composed here: the parser in C halves what each takes.
yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[assignment, misc]
