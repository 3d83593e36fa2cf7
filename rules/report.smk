"""From records to tables, figures, verdicts and their page, and these under plain names."""


use rule artifact as gather with:
    input:
        latents=parents("latents"),
        diagnostics=parents("diagnostics"),
        budgets=parents("budgets"),
        kernels=parents("kernels"),
        skips=parents("skips"),
        flows=parents("flows"),
        evaluations=parents("evaluations"),
        likelihoods=parents("likelihoods"),
        theory=parents("theory"),
    wildcard_constraints:
        kind="frames",


use rule artifact as make_tables with:
    input:
        frames=parents("frames"),
    wildcard_constraints:
        kind="table_files",


use rule artifact as draw_figures with:
    input:
        frames=parents("frames"),
    wildcard_constraints:
        kind="figure_files",


use rule artifact as judge_claims with:
    input:
        frames=parents("frames"),
    wildcard_constraints:
        kind="verdicts",


use rule artifact as lay_out_page with:
    input:
        frames=parents("frames"),
        tables=parents("tables"),
        figures=parents("figures"),
        verdicts=parents("verdicts"),
    wildcard_constraints:
        kind="pages",


rule products:
    input:
        tables=unless_written("table_files"),
        figures=unless_written("figure_files"),
        verdicts=unless_written("verdicts"),
        pages=unless_written("pages"),
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
    message:
        "{rule} of {params.experiment}"
    script:
        "../workflow_scripts/products.py"
