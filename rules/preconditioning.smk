"""The invertible maps, and what they do to the geometry."""


rule preconditioners:
    input:
        parents("preconditioners"),
    output:
        f"{HOME}/preconditioners/{{name}}/artifact.json",
    log:
        f"{RECORDS}/logs/preconditioners/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/preconditioners/{{name}}.tsv"
    params:
        node=node("preconditioners"),
    threads: PLAN.experiment.threads
    resources:
        gpu=gpus,
    script:
        "../workflow_scripts/preconditioner.py"


rule preconditioners_all:
    input:
        artifacts("preconditioners"),


rule diagnostics:
    input:
        parents("diagnostics"),
    output:
        f"{HOME}/diagnostics/{{name}}/artifact.json",
    log:
        f"{RECORDS}/logs/diagnostics/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/diagnostics/{{name}}.tsv"
    params:
        node=node("diagnostics"),
    threads: PLAN.experiment.threads
    script:
        "../workflow_scripts/diagnostics.py"


rule diagnostics_all:
    input:
        artifacts("diagnostics"),
