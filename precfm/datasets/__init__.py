"""Data: where it comes from and how it is checked, one file per data set, and how it is split."""
