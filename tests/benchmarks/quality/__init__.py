"""Quality of the production predictor on public data: `python -m tests.benchmarks.quality --help`."""
