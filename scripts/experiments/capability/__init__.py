"""A budget of tokens shared among capabilities (ReAD, arXiv 2605.11290): do its policies gain anything over w = r?"""
