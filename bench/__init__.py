"""Side-by-side measurements: `python -m bench [NAME …]`; each prints both figures of one run, the ratio
and the spread.
"""
