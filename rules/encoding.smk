"""From images to latents, and the frozen judges of image quality."""


rule classifiers:
    input:
        parents("classifiers"),
    output:
        update(f"{HOME}/classifiers/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/classifiers/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/classifiers/{{name}}.tsv"
    threads: PLAN.threads
    resources:
        gpu=gpus,
    params:
        node=node("classifiers"),
    script:
        "../workflow_scripts/classifier.py"


rule classifiers_all:
    input:
        artifacts("classifiers"),


rule encoders:
    input:
        parents("encoders"),
    output:
        update(f"{HOME}/encoders/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/encoders/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/encoders/{{name}}.tsv"
    threads: PLAN.threads
    resources:
        gpu=gpus,
    params:
        node=node("encoders"),
    script:
        "../workflow_scripts/encoder.py"


rule encoders_all:
    input:
        artifacts("encoders"),


rule latents:
    input:
        parents("latents"),
    output:
        update(f"{HOME}/latents/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/latents/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/latents/{{name}}.tsv"
    threads: PLAN.threads
    resources:
        gpu=gpus,
    params:
        node=node("latents"),
    script:
        "../workflow_scripts/latents.py"


rule latents_all:
    input:
        artifacts("latents"),


rule features:
    input:
        parents("features"),
    output:
        update(f"{HOME}/features/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/features/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/features/{{name}}.tsv"
    threads: PLAN.threads
    resources:
        gpu=gpus,
    params:
        node=node("features"),
    script:
        "../workflow_scripts/features.py"


rule features_all:
    input:
        artifacts("features"),
