"""The query-key interaction: its singular modes, their measures, and what chance would give.

Letters: L layers, H heads, D embed, d head_dim, R = min(D, d) rank. Functions take arrays and return arrays.
"""
