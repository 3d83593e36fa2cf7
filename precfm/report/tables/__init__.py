"""One module per table; each has `tidy(frames)` (the numbers) and `build(frames)` (the table as it is printed)."""
