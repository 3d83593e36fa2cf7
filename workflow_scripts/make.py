"""What every rule runs that makes artifacts: each by `make` of workflow_scripts/<kind>.py."""

from precfm.pipeline.snakemake_entry import run_job

if __name__ == "__main__":  # a job's further processes import this file, too
    run_job(snakemake)
