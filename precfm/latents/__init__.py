"""Latents on disk: .npy, .npz, .safetensors, .pt, or a folder of such shards."""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
