"""How a budget of tokens is shared among capabilities (ReAD, arXiv 2605.11290): numpy, scipy and small nets alone."""
