"""Velocity networks, one file each: `model(x_t, t, labels) -> velocity`."""
