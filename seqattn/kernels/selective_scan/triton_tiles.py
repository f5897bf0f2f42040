"""What the Triton kernels of the scan share: where a program's steps lie, what it loads, and work on tiles.

A sequence is scanned in runs: all of it in the main pass; in the local pass of long windows one window at a time, from
its other end. A run is cut into segments, a segment into chunks of CHUNK steps, a chunk into tiles of BT steps. Tensors
of a tile are (BT, BN, BD): steps in the order of the scan, states, channels of one group. Threads lie along the
channels, so that a thread has the steps and states of its channel in registers, and a recurrence is a chain of
multiply-adds.
"""
# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl


@triton.jit
def locate_program(segments, tiles):
    """Row, segment and channel tile of this program; programs that read the same B and C follow each other."""
    i_p = tl.program_id(0)
    return (i_p // tiles // segments).to(tl.int64), i_p // tiles % segments, i_p % tiles


@triton.jit
def locate_run(p_lengths, i_b, i_r, length, run, REVERSE: tl.constexpr):
    """First step and number of steps of run i_r; runs are counted from where the sequence's scan starts."""
    end = length
    if p_lengths is not None:
        end = tl.minimum(tl.maximum(tl.load(p_lengths + i_b), 0), length).to(tl.int32)
    low = i_r * run
    size = tl.minimum(tl.maximum(end - low, 0), run)
    if REVERSE:
        low = end - low - size
    return low, size


@triton.jit
def locate_row(i_b, length, low, size, place, BACKWARDS: tl.constexpr):
    """Row, in (batch · length), of a place of a run; BACKWARDS, the run is scanned from its high end."""
    if BACKWARDS:
        place = size - 1 - place
    return i_b * length + low + place


@triton.jit
def locate_channels(i_d, channels, groups, tiles, BD: tl.constexpr):
    """Group, channels and mask of channel tile i_d; a tile does not straddle groups."""
    per_group, group_tiles = channels // groups, tiles // groups
    i_g = i_d // group_tiles
    o_c = i_d % group_tiles * BD + tl.arange(0, BD)
    return i_g, i_g * per_group + o_c, o_c < per_group


@triton.jit
def locate_inside(i_g, o_c, channels, groups, states, BACKWARDS: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr):
    """Offsets from a tile's first row: (BT, BD) in u, (BT, BN) in B."""
    o_s = tl.arange(0, BT)
    if BACKWARDS:
        o_s = -o_s
    return o_s[:, None] * channels + o_c[None, :], (o_s[:, None] * groups + i_g) * states + tl.arange(0, BN)[None, :]


@triton.jit
def mask_tile(place, stop, states, m_c, BT: tl.constexpr, BN: tl.constexpr):
    """Masks of the tile at a place, for its offsets: the steps before `stop`."""
    m_s = place + tl.arange(0, BT) < stop
    return m_s[:, None] & m_c[None, :], m_s[:, None] & (tl.arange(0, BN) < states)[None, :]


@triton.jit
def locate_states(o_c, m_c, states, channels, BN: tl.constexpr):
    """Offsets and mask in a (states, channels) matrix, (BN, BD)."""
    o_n = tl.arange(0, BN)
    return o_n[:, None].to(tl.int64) * channels + o_c[None, :], (o_n < states)[:, None] & m_c[None, :]


@triton.jit
def load_states(p_states, i_row, o_a, m_a, states, channels, ACC: tl.constexpr):
    """Matrix i_row of (rows, states, channels), (BN, BD); 0 where there is none."""
    if p_states is not None:
        return tl.load(p_states + i_row * states * channels + o_a, mask=m_a, other=0)
    return tl.zeros(o_a.shape, ACC)


@triton.jit
def load_channels(p_values, o_c, m_c, ACC: tl.constexpr):
    """D or delta_bias, (1, BD); 0 where it is None."""
    if p_values is not None:
        return tl.load(p_values + o_c, mask=m_c, other=0).to(ACC)[None, :]
    return tl.zeros(o_c.shape, ACC)[None, :]


@triton.jit
def load_steps(p_values, o_x, m_x, ACC: tl.constexpr):
    """u, z or a gradient in the dtype of the arithmetic, (BT, 1, BD); 0 outside the mask."""
    return tl.load(p_values + o_x, mask=m_x, other=0).to(ACC)[:, None, :]


@triton.jit
def load_delta(p_delta, o_x, m_x, b_bias, SOFTPLUS: tl.constexpr, ACC: tl.constexpr):
    """delta + bias and the step size Δ, (BT, 1, BD); Δ is 0 outside the mask, where the state then stays as it is."""
    b_raw = load_steps(p_delta, o_x, m_x, ACC) + b_bias[None, :, :]
    b_step = softplus(b_raw) if SOFTPLUS else b_raw
    return b_raw, tl.where(m_x[:, None, :], b_step, 0.0)


@triton.jit
def load_weights(p_weights, o_w, m_w, AGAIN: tl.constexpr = False):
    """B or C, (BT, BN, 1). AGAIN: read them anew, rather than keep them in registers since the last time."""
    return tl.load(p_weights + o_w, mask=m_w, other=0, volatile=AGAIN)[:, :, None]


@triton.jit
def softplus(x):
    """log(1 + e^x), x above 20, with a small relative error where e^x is small, too."""
    power = tl.exp(-tl.abs(x))
    if x.dtype == tl.float64:  # the rounding of 1 + e^-|x| is divided out
        above_one = (1.0 + power) - 1.0
        exact = tl.log(1.0 + power) * (power / tl.where(above_one == 0, 1.0, above_one))
        return tl.where(x > 20, x, tl.maximum(x, 0.0) + tl.where(above_one == 0, power, exact))
    # log(1 + p) / p on [0, 1], relative error 3e-8
    series = 0.0052326936 * power - 0.02950524
    series = series * power + 0.07822596
    series = series * power - 0.13663247
    series = series * power + 0.19106008
    series = series * power - 0.24842982
    series = series * power + 0.33319098
    series = series * power - 0.49999493
    series = series * power + 0.99999994
    return tl.maximum(x, 0.0) + power * series


@triton.jit
def pick_step(b_tile, INDEX: tl.constexpr):
    """Step INDEX of (BT, …, …): a sum of integers, where the zeros added compile to nothing."""
    INTEGER: tl.constexpr = tl.int64 if b_tile.dtype == tl.float64 else tl.int32
    o_s = tl.arange(0, b_tile.shape[0])[:, None, None]
    b_bits = tl.sum(tl.where(o_s == INDEX, b_tile.to(INTEGER, bitcast=True), 0), axis=0)
    return b_bits.to(b_tile.dtype, bitcast=True)


@triton.jit
def put_step(b_tile, INDEX: tl.constexpr, b_step):
    """The tile with step INDEX replaced."""
    return tl.where(tl.arange(0, b_tile.shape[0])[:, None, None] == INDEX, b_step[None, :, :], b_tile)


@triton.jit
def sum_states(b_values):
    """Sum of (BN, BD) over the states, (1, BD)."""
    return tl.sum(b_values, axis=0, keep_dims=True)


@triton.jit
def sum_channels(b_values):
    """Sum of (BN, BD) over the channels, (BN,).

    The channels lie across threads. A plain sum would exchange every value log2(BD) times; here every exchange leaves a
    thread with half of the states, until it has one.
    """
    BN: tl.constexpr = b_values.shape[0]
    b_values = tl.reshape(b_values, (BN, 1, b_values.shape[1]))
    for _ in tl.static_range(16):
        if b_values.shape[0] > 1 and b_values.shape[2] > 1:
            b_values = halve(b_values)
    return tl.reshape(tl.sum(b_values, axis=2), (BN,))


@triton.jit
def halve(b_values):
    """(K, J, R) as (K / 2, 2 J, R / 2): the two halves of the last axis are added."""
    K: tl.constexpr = b_values.shape[0]
    J: tl.constexpr = b_values.shape[1]
    R: tl.constexpr = b_values.shape[2]
    b_pairs = tl.permute(tl.reshape(b_values, (K // 2, 2, J, 2, R // 2)), (0, 1, 2, 4, 3))
    b_low, b_high = tl.split(b_pairs)
    return tl.reshape(b_low + b_high, (K // 2, 2 * J, R // 2))
