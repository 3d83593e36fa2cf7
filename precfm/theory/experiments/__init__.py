"""The experiments of the theory: one module each, with one pure function `run(options, seed)` of tables.

Options that mean the same everywhere are explained here, the others in each `run`:

* dim: dimension of the data;
* condition_number, condition_numbers: of the data, whose spectra have mean one; of a mixture, those of its components,
  the worst last;
* times: times t, below 1 for the score; targets: what is regressed; paths: probability paths;
* seeds: how many rotations, starts and data sets there are for each setting;
* fraction: accuracy of the excess risk, relative to the start;
* batch_size: samples per step of stochastic descent;
* methods: with which preconditioners networks are trained; steps: of the optimizer; width: units of their three hidden
  layers; data_size: size of the data set that flow and preconditioner share; samples: how many are generated;
* seed: seed of everything random: law, data, initial weights, training and evaluation.
"""
