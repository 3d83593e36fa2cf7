"""The experiments of the theory: one module each, with one pure function `run(options, seed)` of tables."""
