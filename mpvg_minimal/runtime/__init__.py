"""What every program needs and no model: errors, seeds, signals, processes. It imports nothing of the package."""
