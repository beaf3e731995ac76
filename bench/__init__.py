"""The benchmark: ours and what people use instead, on the same work in the same run.

    python -m bench [--quick] [--rounds N] [--only NAME,...] [--json FILE] [--no-docs]

Rule: what runs inside a contestant's own virtual environment (`probe` and `contestants`) imports nothing but the standard
library and that contestant.
"""
