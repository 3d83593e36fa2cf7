"""One module per table; each has `tidy(frames)` (the numbers) and `build(frames)` (as it is printed)."""
