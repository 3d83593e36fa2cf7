"""One module per figure; each has `draw(frames, images)`; `style` holds what they share."""
