"""Value Zeroing: zero one value position in one layer, measure how far each output moves."""
