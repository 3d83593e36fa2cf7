"""Matched baselines, recipes, predictions; flow training and sampling."""


rule budgets:
    input:
        parents("budgets"),
    output:
        update(f"{HOME}/budgets/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/budgets/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/budgets/{{name}}.tsv"
    threads: PLAN.threads
    params:
        node=node("budgets"),
    script:
        "../workflow_scripts/budget.py"


rule budgets_all:
    input:
        artifacts("budgets"),


rule recipes:
    input:
        parents("recipes"),
    output:
        update(f"{HOME}/recipes/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/recipes/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/recipes/{{name}}.tsv"
    threads: PLAN.threads
    resources:
        gpu=gpus,
    params:
        node=node("recipes"),
    script:
        "../workflow_scripts/recipe.py"


rule recipes_all:
    input:
        artifacts("recipes"),


rule kernels:
    input:
        parents("kernels"),
    output:
        update(f"{HOME}/kernels/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/kernels/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/kernels/{{name}}.tsv"
    threads: PLAN.threads
    params:
        node=node("kernels"),
    script:
        "../workflow_scripts/kernel.py"


rule kernels_all:
    input:
        artifacts("kernels"),


rule flows:
    input:
        parents("flows"),
    output:
        update(f"{HOME}/flows/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/flows/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/flows/{{name}}.tsv"
    threads: PLAN.threads
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
        update(f"{HOME}/samples/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/samples/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/samples/{{name}}.tsv"
    threads: PLAN.threads
    resources:
        gpu=gpus,
    params:
        node=node("samples"),
    script:
        "../workflow_scripts/samples.py"


rule samples_all:
    input:
        artifacts("samples"),
