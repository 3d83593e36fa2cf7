"""The invertible maps, and what they do to the geometry."""


rule decoder_metrics:
    input:
        parents("decoder_metrics"),
    output:
        update(f"{HOME}/decoder_metrics/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/decoder_metrics/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/decoder_metrics/{{name}}.tsv"
    threads: PLAN.threads
    params:
        node=node("decoder_metrics"),
    script:
        "../workflow_scripts/decoder_metric.py"


rule decoder_metrics_all:
    input:
        artifacts("decoder_metrics"),


rule preconditioners:
    input:
        parents("preconditioners"),
    output:
        update(f"{HOME}/preconditioners/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/preconditioners/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/preconditioners/{{name}}.tsv"
    threads: PLAN.threads
    resources:
        gpu=gpus,
    params:
        node=node("preconditioners"),
    script:
        "../workflow_scripts/preconditioner.py"


rule preconditioners_all:
    input:
        artifacts("preconditioners"),


rule diagnostics:
    input:
        parents("diagnostics"),
    output:
        update(f"{HOME}/diagnostics/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/diagnostics/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/diagnostics/{{name}}.tsv"
    threads: PLAN.threads
    params:
        node=node("diagnostics"),
    script:
        "../workflow_scripts/diagnostics.py"


rule diagnostics_all:
    input:
        artifacts("diagnostics"),
