"""`python -m benchmarks capacity`: what so many events a day need, from figures that were measured.

Start reading at `calculator.py`. `measuring.py` measures the figures, `page.py` puts them into docs/capacity.md.
"""
