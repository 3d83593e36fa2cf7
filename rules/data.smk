"""Raw data: verified, decoded, split."""


rule data:
    input:
        parents("data"),
    output:
        update(f"{HOME}/data/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/data/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/data/{{name}}.tsv"
    threads: PLAN.threads
    params:
        node=node("data"),
    script:
        "../workflow_scripts/data.py"


rule data_all:
    input:
        artifacts("data"),
