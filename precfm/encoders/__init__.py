"""Encoders: from images to the latents in which a flow is trained, and back."""
