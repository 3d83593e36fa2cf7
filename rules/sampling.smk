"""Samples, their metrics against the held-out split, and its likelihood."""


use rule artifact as sample with:
    # For whoever asks for samples alone: evaluations bring their own.
    input:
        latents=parents("latents"),
        preconditioner=parents("preconditioner"),
        skip=parents("skip"),
        flow=parents("flow"),
        recipe=parents("recipe"),
    wildcard_constraints:
        kind="samples",


use rule artifact as sample_and_evaluate with:
    # Makes the samples, too. What all flows of one setting are compared with (the floor, maps in closed form without a
    # flow) shares a job.
    input:
        flow=parents("flow"),
        recipe=parents("recipe"),
        skip=parents("skip"),
        preconditioner=parents("preconditioner"),
        latents=parents("latents"),
        data=parents("data"),
        encoder=parents("encoder"),
        classifiers=parents("classifiers"),
        features=parents("features"),
    wildcard_constraints:
        kind="evaluations",


use rule artifact as measure_likelihood with:
    # Of what has no network, all of one setting share a job.
    input:
        flow=parents("flow"),
        skip=parents("skip"),
        preconditioner=parents("preconditioner"),
        latents=parents("latents"),
    wildcard_constraints:
        kind="likelihoods",
