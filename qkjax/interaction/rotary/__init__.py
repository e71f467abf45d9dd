"""The query-key interaction of heads with rotary positions (RoPE; Su et al. 2021, RoFormer, arXiv 2104.09864).

A head with rotary positions rotates its queries and keys before it multiplies them. With tokens as rows,

    q_i = (y_i Wq + bq) R(p_i),   k_j = (y_j Wk + bk) R(p_j),   sqrt(d) logit_ij = q_i k_j^T

where R(p) is orthogonal and rotates each plane a = 0 ... d/2 - 1 by an angle theta_a(p). The interaction therefore
depends on the offset delta = p_i - p_j of the two positions: M(delta) = Wq R(delta) Wk^T. The modules of this package
describe M(delta) with arrays alone:

    rotation   which columns form a plane, angles of positions and of offsets, `rotate`
    mean       Mbar, the mean of M(delta) over all pairs of positions, as two kernels for `decompose`
    place      the share of M(delta) that depends on position, by head, plane and axis
    distance   the weighted cosine of M(delta) for every offset: grouping as a function of distance
    chance     the values of these measures for heads with random kernels and the same rotation
    measures   all of these measures of a model at once
    exact      the logits of rotated queries and keys as a sum over the modes of Mbar
    bias       the bias terms of the logits, which depend on the positions
    edit       edits of the modes of Mbar, in kernels that keep the rotation
    by_column  Mbar for a rotation that is not orthogonal

R(p) must be orthogonal. The published rotation of V-JEPA 2 is not orthogonal, so M depends on p_i and p_j and not only
on their offset: of these functions, only those of `by_column` apply to it.

Letters: L layers, H heads, D embed, d head_dim, P positions, A = d / 2 planes, R rank.
"""
