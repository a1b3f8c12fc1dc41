"""The only rooms that know TransformerLens model classes."""
