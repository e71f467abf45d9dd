"""The query-key interaction of attention heads: its singular modes, measures of modes, and values expected by chance.

Letters: L layers, H heads, D embed, d head_dim, R = min(D, d) rank. Functions take arrays and return arrays.
"""
