"""Metrics of the samples against the held-out split."""


rule evaluations:
    input:
        parents("evaluations"),
    output:
        update(f"{HOME}/evaluations/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/evaluations/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/evaluations/{{name}}.tsv"
    threads: PLAN.threads
    resources:
        gpu=gpus,
    params:
        node=node("evaluations"),
    script:
        "../workflow_scripts/evaluation.py"


rule evaluations_all:
    input:
        artifacts("evaluations"),
