"""The invertible maps, and what they do to the geometry."""


use rule artifact as measure_decoder with:
    input:
        latents=parents("latents"),
        encoder=parents("encoder"),
    wildcard_constraints:
        kind="decoder_metrics",


use rule artifact as train_preconditioner with:
    input:
        latents=parents("latents"),
        decoder_metric=parents("decoder_metric"),
    wildcard_constraints:
        kind="preconditioners",


CLOSED_FORMS = light("preconditioners")


use rule artifact as fit_preconditioners with:
    input:
        latents=parents("latents", CLOSED_FORMS),
        decoder_metric=parents("decoder_metric", CLOSED_FORMS),
    output:
        update(records(CLOSED_FORMS)),
    log:
        f"{RECORDS}/logs/preconditioners.log",
    benchmark:
        f"{RECORDS}/benchmarks/preconditioners.tsv"
    resources:
        gpu=gpus("preconditioners"),
    params:
        nodes=plain(CLOSED_FORMS),


ruleorder: fit_preconditioners > train_preconditioner


DIAGNOSTICS = light("diagnostics")


use rule artifact as diagnose with:
    input:
        latents=parents("latents", DIAGNOSTICS),
        preconditioners=parents("preconditioner", DIAGNOSTICS),
    output:
        update(records(DIAGNOSTICS)),
    log:
        f"{RECORDS}/logs/diagnostics.log",
    benchmark:
        f"{RECORDS}/benchmarks/diagnostics.tsv"
    params:
        nodes=plain(DIAGNOSTICS),
