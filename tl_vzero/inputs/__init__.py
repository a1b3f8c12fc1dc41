"""What a model is given: text, pairs, images and sounds, read into tokens and masks."""
