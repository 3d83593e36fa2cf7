"""From records to tables, figures and verdicts, and these under plain names."""


rule frames:
    input:
        parents("frames"),
    output:
        update(f"{HOME}/frames/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/frames/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/frames/{{name}}.tsv"
    threads: PLAN.threads
    params:
        node=node("frames"),
    script:
        "../workflow_scripts/frames.py"


rule frames_all:
    input:
        artifacts("frames"),


rule table_files:
    input:
        parents("table_files"),
    output:
        update(f"{HOME}/table_files/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/table_files/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/table_files/{{name}}.tsv"
    threads: PLAN.threads
    params:
        node=node("table_files"),
    script:
        "../workflow_scripts/table.py"


rule table_files_all:
    input:
        artifacts("table_files"),


rule figure_files:
    input:
        parents("figure_files"),
    output:
        update(f"{HOME}/figure_files/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/figure_files/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/figure_files/{{name}}.tsv"
    threads: PLAN.threads
    params:
        node=node("figure_files"),
    script:
        "../workflow_scripts/figure.py"


rule figure_files_all:
    input:
        artifacts("figure_files"),


rule verdicts:
    input:
        parents("verdicts"),
    output:
        update(f"{HOME}/verdicts/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/verdicts/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/verdicts/{{name}}.tsv"
    threads: PLAN.threads
    params:
        node=node("verdicts"),
    script:
        "../workflow_scripts/verdicts.py"


rule verdicts_all:
    input:
        artifacts("verdicts"),


rule products:
    input:
        []
        if Path(PRODUCTS_WRITTEN).exists()
        else [path for kind in PRODUCTS for path in artifacts(kind)],
    output:
        touch(PRODUCTS_WRITTEN),
        report(
            directory(f"{HOME}/figures"),
            patterns=["{name}.png"],
            caption="captions/figures.rst",
            category="Figures",
        ),
        report(
            directory(f"{HOME}/tables"),
            patterns=["{name}.csv"],
            caption="captions/tables.rst",
            category="Tables",
        ),
    log:
        f"{RECORDS}/logs/products.log",
    localrule: True
    params:
        experiment=EXPERIMENT,
    script:
        "../workflow_scripts/products.py"
