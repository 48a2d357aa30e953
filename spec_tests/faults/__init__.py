"""Wrong blocks, one difference each: the catalogue that measures the suite (tools/kill_matrix.py)."""
