"""The engines that must give the same numbers."""

ENGINES = ["auto", "hooks"]
