"""The query-key interaction: singular modes, what is measured of them, and what chance would give.

Letters: L layers, H heads, D embed, d head_dim, R = min(D, d) rank. Only arrays in, arrays out.
"""
