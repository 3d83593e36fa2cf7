include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/encoding.smk"
include: "rules/preconditioning.smk"
include: "rules/flows.smk"
include: "rules/evaluation.smk"
include: "rules/theory.smk"
include: "rules/report.smk"


rule everything:
    default_target: True
    input:
        artifacts(),
        PRODUCTS_WRITTEN,
