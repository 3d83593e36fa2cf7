"""Distances between a generated and a real set, computed on feature matrices, each with its protocol."""
