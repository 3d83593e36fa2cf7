"""Controlled experiments with closed forms."""


use rule artifact as run_theory with:
    wildcard_constraints:
        kind="theory",
