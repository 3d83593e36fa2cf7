"""The rule that those of all artifacts are made of, and a target for each kind."""


rule artifact:
    # make.py hands each artifact of a job to workflow_scripts/<kind>.py; the rules made of this one say which kind, and
    # from what.
    output:
        update(f"{HOME}/{{kind}}/{{name}}/artifact.json"),
    log:
        f"{RECORDS}/logs/{{kind}}/{{name}}.log",
    benchmark:
        f"{RECORDS}/benchmarks/{{kind}}/{{name}}.tsv"
    wildcard_constraints:
        kind="$^",  # none: nothing is made by this rule itself
    threads: cores
    resources:
        gpu=gpus,
    params:
        nodes=plain,
    message:
        "{rule} {wildcards.name}"
    script:
        "../workflow_scripts/make.py"


for kind in KINDS:

    rule:
        name:
            f"all_{kind}"
        input:
            records(PLAN.of(kind)),
        message:
            "{rule}"
