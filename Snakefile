include: "rules/common.smk"
include: "rules/artifact.smk"
include: "rules/data.smk"
include: "rules/encoding.smk"
include: "rules/preconditioning.smk"
include: "rules/flows.smk"
include: "rules/sampling.smk"
include: "rules/theory.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        PRODUCTS_WRITTEN,
    message:
        "{rule}"
