"""What the same value positions do to the prediction: zeroed, patched, estimated; and how a score agrees."""
