"""The report as one self-contained web page: of an experiment, and of all that are published."""
