"""What one does to a finished model or run: plots, export, cost, throughput."""
