"""Events through many processes while things break, from a seed: `python -m tests.chaos`, docs/reliability.md."""
