"""Preconditioners: invertible maps from data space to one where a flow learns more easily, one file each."""
