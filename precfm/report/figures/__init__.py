"""One module per figure; each has `draw(frames)`; `style` and `axes` hold what they share."""
