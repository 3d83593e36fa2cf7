"""The invertible maps, and what they do to the geometry."""


use rule artifact as measure_decoder with:
    input:
        latents=parents("latents"),
        encoder=parents("encoder"),
    wildcard_constraints:
        kind="decoder_metrics",


use rule artifact as fit_preconditioner with:
    # Those in closed form of one latent space share a job.
    input:
        latents=parents("latents"),
        decoder_metric=parents("decoder_metric"),
    wildcard_constraints:
        kind="preconditioners",


use rule artifact as diagnose with:
    # All maps of one setting share a job.
    input:
        latents=parents("latents"),
        preconditioner=parents("preconditioner"),
    wildcard_constraints:
        kind="diagnostics",
