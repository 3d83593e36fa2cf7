include: "rules/common.smk"
include: "rules/artifact.smk"
include: "rules/data.smk"
include: "rules/encoding.smk"
include: "rules/preconditioning.smk"
include: "rules/flows.smk"
include: "rules/sampling.smk"
include: "rules/theory.smk"
include: "rules/report.smk"


# Behind its limit of jobs per second Snakemake selects jobs once a second more for every job that has ended, until that
# takes a core (snakemake/snakemake#2967). Neither local jobs nor a cluster's queue need the limit.
onstart:
    workflow.scheduler.job_rate_limiter = None


rule all:
    default_target: True
    input:
        PRODUCTS_WRITTEN,
    message:
        "{rule}"
