"""What the demo shows: a simulated shop."""
