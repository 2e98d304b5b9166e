"""Scripts of this repository, a package so that ``python -m scripts.…`` finds this one and not another wheel's."""
