"""Samples, and their metrics against the held-out split."""


use rule artifact as sample with:
    # For whoever asks for samples alone: evaluations bring their own.
    input:
        latents=parents("latents"),
        preconditioner=parents("preconditioner"),
        flow=parents("flow"),
    wildcard_constraints:
        kind="samples",


use rule artifact as sample_and_evaluate with:
    input:
        flow=parents("flow"),
        preconditioner=parents("preconditioner"),
        latents=parents("latents"),
        data=parents("data"),
        encoder=parents("encoder"),
        classifiers=parents("classifiers"),
        features=parents("features"),
    wildcard_constraints:
        kind="evaluations",


# What every flow is compared with: the floor, and each preconditioner without a flow.
REFERENCES = with_samples(light("evaluations"))


use rule artifact as evaluate_references with:
    input:
        preconditioners=parents("preconditioner", REFERENCES),
        latents=parents("latents", REFERENCES),
        data=parents("data", REFERENCES),
        encoder=parents("encoder", REFERENCES),
        classifiers=parents("classifiers", REFERENCES),
        features=parents("features", REFERENCES),
    output:
        update(records(light("evaluations"))),
    log:
        f"{RECORDS}/logs/references.log",
    benchmark:
        f"{RECORDS}/benchmarks/references.tsv"
    resources:
        gpu=gpus("evaluations"),
    params:
        nodes=plain(REFERENCES),


ruleorder: evaluate_references > sample_and_evaluate
