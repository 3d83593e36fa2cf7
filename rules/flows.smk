"""Flow training and sampling."""


rule flows:
    input:
        parents("flows"),
    output:
        f"{HOME}/flows/{{name}}/artifact.json",
    log:
        f"{RECORDS}/logs/flows/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/flows/{{name}}.tsv"
    threads: PLAN.experiment.threads
    resources:
        gpu=gpus,
    params:
        node=node("flows"),
    script:
        "../workflow_scripts/flow.py"


rule flows_all:
    input:
        artifacts("flows"),


rule samples:
    input:
        parents("samples"),
    output:
        f"{HOME}/samples/{{name}}/artifact.json",
    log:
        f"{RECORDS}/logs/samples/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/samples/{{name}}.tsv"
    threads: PLAN.experiment.threads
    resources:
        gpu=gpus,
    params:
        node=node("samples"),
    script:
        "../workflow_scripts/samples.py"


rule samples_all:
    input:
        artifacts("samples"),
