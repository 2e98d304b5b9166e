"""How a budget of tokens is shared among capabilities (ReAD, arXiv 2605.11290): numpy, scipy and small nets alone.

A *capability* is a group of prompts with probes of its own. A *mix* is a point of the simplex: each capability's share
of the tokens of a *decision*, which is some steps long. *Scores* are what the probes say, in [0, 1]; the *requirement*
r weighs them, and r · Δscores is what a run is after. The *static* mix is w = r.
"""
