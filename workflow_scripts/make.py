"""What every rule runs that makes artifacts: each by `make` of workflow_scripts/<kind>.py."""

from precfm.pipeline.snakemake_entry import run_job

run_job(snakemake)
