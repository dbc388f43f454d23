"""How fast lightbus_django is, beside what it is built on and what people would use instead.

`python -m benchmarks --list` names the scenarios; `scenarios.py` says what is compared with what.
"""
