"""A group of states as one value inside a kernel: a vector of channels for each, with the arithmetic of `numba_vector`.

The states of a group share what is loaded and stored for a step, and their recurrences run side by side, where one
would wait for itself. Functions take the number of states from a group they are given: GROUP, or one.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from seqattn.kernels.numba_vector import LANES, VectorType, fold, splat

GROUP = 4
"""States of a group, a power of two; more would not stay in the registers."""


def _lanes(builder: Any, left: Any, right: Any, lanes: list[int]) -> Any:
    """These lanes of left followed by right."""
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _state(builder: Any, group: Any, n: int) -> Any:
    return _lanes(builder, group, group, list(range(n * LANES, (n + 1) * LANES)))


def _address(builder: Any, address: Any, index: Any, count: int) -> Any:
    """Where the `count` numbers from `index` on are one vector."""
    place = builder.gep(address, [index])
    return builder.bitcast(place, ir.VectorType(place.type.pointee, count).as_pointer())


@intrinsic
def load_group(typing_context: Any, address: Any, index: Any) -> Any:
    """GROUP vectors, from `index` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _address(builder, arguments[0], arguments[1], GROUP * LANES)
        return builder.load(place, align=address.dtype.bitwidth // 8)

    return VectorType(address.dtype, GROUP)(address, types.intp), generate


@intrinsic
def load_like(typing_context: Any, address: Any, index: Any, like: Any) -> Any:
    """As many vectors as there are states in `like`, from `index` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _address(builder, arguments[0], arguments[1], like.rows * LANES)
        return builder.load(place, align=address.dtype.bitwidth // 8)

    return like(address, types.intp, like), generate


@intrinsic
def each(typing_context: Any, vector: Any, like: Any) -> Any:
    """The same vector for every state."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _lanes(builder, arguments[0], arguments[0], list(range(LANES)) * like.rows)

    return like(vector, like), generate


@intrinsic
def load_each(typing_context: Any, address: Any, index: Any, like: Any) -> Any:
    """For state n element index + n, in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = builder.gep(arguments[0], [arguments[1]])
        places = [builder.gep(first, [ir.Constant(ir.IntType(64), n)]) for n in range(like.rows)]
        vectors = [splat(builder, builder.load(place)) for place in places]
        while len(vectors) > 1:
            lanes = list(range(2 * vectors[0].type.count))
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [_lanes(builder, left, right, lanes) for left, right in pairs]
        return vectors[0]

    return like(address, types.intp, like), generate


@intrinsic
def add_products(typing_context: Any, vector: Any, left: Any, right: Any) -> Any:
    """vector + left right of the first state + that of the second, and so on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, flags = arguments[0], ("contract",)
        for n in range(left.rows):
            factors = (_state(builder, group, n) for group in arguments[1:])
            total = builder.fadd(total, builder.fmul(*factors, flags=flags), flags=flags)
        return total

    return vector(vector, left, right), generate


@intrinsic
def add_lane_sums(typing_context: Any, address: Any, index: Any, group: Any) -> Any:
    """Add the sum over the lanes of state n to element index + n."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, size = [_state(builder, arguments[2], n) for n in range(group.rows)], LANES
        while len(rows) > 1:  # two vectors fold into one with twice the groups of partial sums
            pairs = zip(rows[: len(rows) // 2], rows[len(rows) // 2 :], strict=True)
            rows, size = [fold(builder, left, right, size) for left, right in pairs], size // 2
        total = rows[0]
        while size > 1:
            size //= 2
            moved = _lanes(builder, total, total, [lane ^ size for lane in range(LANES)])
            total = builder.fadd(total, moved)
        sums = _lanes(builder, total, total, list(range(0, LANES, LANES // group.rows)))
        place, align = _address(builder, arguments[0], arguments[1], group.rows), group.element.bitwidth // 8
        builder.store(builder.fadd(builder.load(place, align=align), sums), place, align=align)
        return context.get_dummy_value()

    return types.void(address, types.intp, group), generate
