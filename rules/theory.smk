"""Controlled experiments with closed forms."""


rule theory:
    input:
        parents("theory"),
    output:
        update(f"{HOME}/theory/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/theory/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/theory/{{name}}.tsv"
    threads: PLAN.threads
    params:
        node=node("theory"),
    script:
        "../workflow_scripts/theory.py"


rule theory_all:
    input:
        artifacts("theory"),
