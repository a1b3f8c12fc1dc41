"""The other context-mixing scores, one file per family."""
