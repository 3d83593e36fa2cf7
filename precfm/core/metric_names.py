"""The name under which a metric is recorded and reported, and the number that is part of it."""

COMPONENTS = 64  # principal coordinates in which small sets are compared
FRECHET_IN_COMPONENTS = f"frechet_pca{COMPONENTS}"
