"""From images to latents, and the frozen judges of image quality."""


use rule artifact as train_classifier with:
    input:
        data=parents("data"),
    wildcard_constraints:
        kind="classifiers",


use rule artifact as train_encoder with:
    input:
        data=parents("data"),
    wildcard_constraints:
        kind="encoders",


use rule artifact as encode with:
    input:
        data=parents("data"),
        encoder=parents("encoder"),
    wildcard_constraints:
        kind="latents",


use rule artifact as extract_features with:
    input:
        data=parents("data"),
        latents=parents("latents"),
        encoder=parents("encoder"),
        classifiers=parents("classifiers"),
    wildcard_constraints:
        kind="features",
