"""Benchmarks: what is timed (suites, cases), beside whom (peers), how (measure), and what is kept of it (runs).

`convbackprop bench`, `compare`, `plot` and `report` are the commands; they print what is computed here.
"""
