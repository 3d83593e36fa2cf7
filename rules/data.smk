"""Raw data: verified, decoded, split."""


rule data:
    input:
        parents("data"),
    output:
        f"{HOME}/data/{{name}}/artifact.json",
    log:
        f"{RECORDS}/logs/data/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/data/{{name}}.tsv"
    params:
        node=node("data"),
    threads: PLAN.experiment.threads
    script:
        "../workflow_scripts/data.py"


rule data_all:
    input:
        artifacts("data"),
