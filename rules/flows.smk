"""Skips around networks, matched baselines, recipes, predictions; the flows themselves."""


use rule artifact as fit_skip with:
    input:
        latents=parents("latents"),
        preconditioner=parents("preconditioner"),
    wildcard_constraints:
        kind="skips",


use rule artifact as match_budget with:
    input:
        latents=parents("latents"),
        preconditioner=parents("preconditioner"),
        decoder_metric=parents("decoder_metric"),
        skip=parents("skip"),
    wildcard_constraints:
        kind="budgets",


use rule artifact as search_recipe with:
    input:
        latents=parents("latents"),
        preconditioner=parents("preconditioner"),
        decoder_metric=parents("decoder_metric"),
        skip=parents("skip"),
        budget=parents("budget"),
        data=parents("data"),
        encoder=parents("encoder"),
        classifier=parents("classifier"),
    wildcard_constraints:
        kind="recipes",


use rule artifact as predict_steps with:
    input:
        latents=parents("latents"),
        preconditioner=parents("preconditioner"),
        decoder_metric=parents("decoder_metric"),
    wildcard_constraints:
        kind="kernels",


use rule artifact as train_flow with:
    input:
        latents=parents("latents"),
        preconditioner=parents("preconditioner"),
        decoder_metric=parents("decoder_metric"),
        skip=parents("skip"),
        through=parents("through"),
        budget=parents("budget"),
        recipe=parents("recipe"),
    wildcard_constraints:
        kind="flows",
