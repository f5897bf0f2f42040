"""Sixteen numbers as one value inside a Numba kernel: loads, stores, arithmetic, and a few elementary functions.

LLVM's automatic vectorisation gives up on a recurrence over time, which is what a scan is; with an explicit vector of
channels every operation is one or two machine instructions on any CPU, and a state stays in registers.
Functions of a kernel take addresses (`pointer`, `advance`), between which and vectors `load`, `store` and
`load_broadcast` move; `broadcast` and `lane_total` lead from and to single numbers; + - * and `exp2`, `softplus`,
`sigmoid`, `maximum` work lane by lane.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 16


class VectorType(types.Type):
    """LANES numbers of one floating type, or `rows` times as many."""

    def __init__(self, element: types.Float, rows: int = 1) -> None:
        self.element, self.rows = element, rows
        super().__init__(name=f"Vector({element}, {rows})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: VectorType) -> None:
        element = ir.FloatType() if vector.element == types.float32 else ir.DoubleType()
        super().__init__(manager, vector, ir.VectorType(element, LANES * vector.rows))


def splat(builder: Any, scalar: Any) -> Any:
    """A vector with the same number in every lane, while LLVM code is generated."""
    vector = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    first = builder.insert_element(vector, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, vector, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


@intrinsic
def pointer(typing_context: Any, array: Any, index: Any) -> Any:
    """Address of element `index` of the flat data of a C-contiguous array.

    It does not keep the array alive: only for arrays that the caller of the kernel holds. Unlike an array it costs
    nothing to pass to a function, and indexing it neither checks nor wraps.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(cgutils.create_struct_proxy(array)(context, builder, arguments[0]).data, [arguments[1]])

    return types.CPointer(array.dtype)(array, types.intp), generate


@intrinsic
def advance(typing_context: Any, address: Any, count: Any) -> Any:
    """The address `count` elements further on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return address(address, types.intp), generate


def _vector_address(builder: Any, address: Any, index: Any) -> Any:
    place = builder.gep(address, [index])
    return builder.bitcast(place, ir.VectorType(place.type.pointee, LANES).as_pointer())


@intrinsic
def load(typing_context: Any, address: Any, index: Any) -> Any:
    """The LANES elements from `index` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_vector_address(builder, *arguments), align=address.dtype.bitwidth // 8)

    return VectorType(address.dtype)(address, types.intp), generate


@intrinsic
def store(typing_context: Any, address: Any, index: Any, vector: Any) -> Any:
    """Write a vector to the elements from `index` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), arguments[2].type.as_pointer())
        builder.store(arguments[2], place, align=address.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(address, types.intp, vector), generate


def _prefetching(writing: bool, meaning: str) -> Any:
    def function(typing_context: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), ir.IntType(8).as_pointer())
            number = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
            builder.call(function, [place, *(ir.Constant(number, value) for value in (int(writing), 3, 1))])
            return context.get_dummy_value()

        return types.void(address, types.intp), generate

    function.__doc__ = meaning
    return intrinsic(function)


prefetch = _prefetching(False, "Ask for the cache line of element `index`, which may lie anywhere.")
prefetch_write = _prefetching(True, "`prefetch` for a line that will be written.")


@intrinsic
def broadcast(typing_context: Any, scalar: Any) -> Any:
    """A vector with the same number in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return splat(builder, arguments[0])

    return VectorType(scalar)(scalar), generate


@intrinsic
def load_broadcast(typing_context: Any, address: Any, index: Any) -> Any:
    """A vector with element `index` in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return splat(builder, builder.load(builder.gep(arguments[0], [arguments[1]])))

    return VectorType(address.dtype)(address, types.intp), generate


@intrinsic
def lane_total(typing_context: Any, vector: Any) -> Any:
    """The sum over the lanes of one vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, half = arguments[0], LANES // 2
        while half:
            lanes = [(lane + half) % LANES for lane in range(LANES)]
            moved = builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(ir.IntType(32), LANES), lanes))
            value, half = builder.fadd(value, moved), half // 2
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return vector.element(vector), generate


def fold(builder: Any, left: Any, right: Any, group: int) -> Any:
    """Halve every group of left and right, adding its halves; left's and right's groups alternate in the result."""
    starts = [start + side for start in range(0, LANES, group) for side in (0, LANES)]
    low, high = ([start + half + lane for start in starts for lane in range(group // 2)] for half in (0, group // 2))
    kind = ir.VectorType(ir.IntType(32), LANES)
    return builder.fadd(*(builder.shuffle_vector(left, right, ir.Constant(kind, lanes)) for lanes in (low, high)))


def _arithmetic(function: Any, instruction: str) -> None:
    @type_callable(function)
    def _type(context: Any) -> Any:
        def typer(left: Any, right: Any) -> Any:
            return left if isinstance(left, VectorType) and left == right else None

        return typer

    @lower_builtin(function, VectorType, VectorType)
    def _lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # "contract": a product and a sum may become one fused multiply-add; nothing else may change
        return getattr(builder, instruction)(*arguments, flags=("contract",))


for _function, _instruction in (
    (operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"),
):  # fmt: skip
    _arithmetic(_function, _instruction)


class Lanes:
    """A vector while LLVM code is generated: Python's operators emit the instructions, numbers are broadcast."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value
        self.single, self.count = isinstance(value.type.element, ir.FloatType), value.type.count

    def _emit(self, instruction: str, other: Any) -> "Lanes":
        return Lanes(
            self.builder, getattr(self.builder, instruction)(self.value, self._raw(other), flags=("contract",))
        )

    def _raw(self, other: Any) -> Any:
        return other.value if isinstance(other, Lanes) else ir.Constant(self.value.type, [float(other)] * self.count)

    def __add__(self, other: Any) -> "Lanes":
        return self._emit("fadd", other)

    def __sub__(self, other: Any) -> "Lanes":
        return self._emit("fsub", other)

    def __mul__(self, other: Any) -> "Lanes":
        return self._emit("fmul", other)

    def __truediv__(self, other: Any) -> "Lanes":
        return self._emit("fdiv", other)

    def where_below(self, bound: Any, below: Any, otherwise: Any) -> "Lanes":
        """`below` where self < bound, else (NaN too) `otherwise`."""
        chosen = self.builder.fcmp_ordered("<", self.value, self._raw(bound))
        return Lanes(self.builder, self.builder.select(chosen, self._raw(below), self._raw(otherwise)))

    def polynomial(self, coefficients: Sequence[float]) -> "Lanes":
        """c_0 + c_1 x + c_2 x² + …"""
        result = self * coefficients[-1] + coefficients[-2]
        for coefficient in coefficients[-3::-1]:
            result = result * self + coefficient
        return result

    def fused(self, factor: Any, term: Any) -> "Lanes":
        """self * factor + term, rounded once."""
        arguments = (self.value, self._raw(factor), self._raw(term))
        name = f"llvm.fma.v{self.count}f{32 if self.single else 64}"
        kind = ir.FunctionType(self.value.type, [self.value.type] * 3)
        return Lanes(
            self.builder, self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)
        )

    def shifted_left(self, count: int) -> "Lanes":
        """The bits moved left by `count`."""
        integers = ir.VectorType(ir.IntType(32 if self.single else 64), self.count)
        places = ir.Constant(integers, [count] * self.count)
        bits = self.builder.shl(self.builder.bitcast(self.value, integers), places)
        return Lanes(self.builder, self.builder.bitcast(bits, self.value.type))


def _exp2(x: Lanes) -> Lanes:
    lowest, highest = (-126, 128) if x.single else (-1022, 1024)
    x = x.where_below(lowest, lowest, x)
    x = (x * -1).where_below(-highest, highest, x)
    return near_exp2(x, 1)


def near_exp2(x: Lanes, factor: Any) -> Lanes:
    mantissa, bias = (23, 127) if x.single else (52, 1023)
    magic = 1.5 * 2.0**mantissa + bias
    exponent = x.fused(factor, magic)  # its lowest bits are the integer next to x factor, plus the exponent's bias
    fraction = x.fused(factor, (exponent - magic) * -1)
    return fraction.polynomial(EXP2_SINGLE if x.single else EXP2_DOUBLE) * exponent.shifted_left(mantissa)


def _exp_minus_abs(x: Lanes) -> Lanes:
    return _exp2(x.where_below(0, x, x * -1) * math.log2(math.e))


def _softplus(x: Lanes) -> Lanes:
    small = _exp_minus_abs(x)
    s = small / (small + 2)  # log(1 + small) = 2 atanh(s), and s <= 1/3
    series = (s * s).polynomial([2 / odd for odd in range(1, 15 if x.single else 35, 2)])
    logarithm = x.where_below(0, 0, x) + s * series
    return (x * -1).where_below(-20, x, logarithm)


def _sigmoid(x: Lanes) -> Lanes:
    small = _exp_minus_abs(x)
    return x.where_below(0, small, 1) / (small + 1)


def _softplus_slope(x: Lanes) -> Lanes:
    return (x * -1).where_below(-20, 1, _sigmoid(x))


NEAR = 126
"""Where single precision needs no clamp."""
# 2^x on [-1/2, 1/2], exactly 1 at 0: minimax with relative error 1e-7, and Taylor with 4e-18
EXP2_SINGLE = (
    1.0, 0.6931469775989918, 0.24022242085376713, 0.05550733743470423, 0.009671512639958614, 0.0013264727140002563,
)  # fmt: skip
EXP2_DOUBLE = tuple(math.log(2) ** n / math.factorial(n) for n in range(14))


@intrinsic
def maximum(typing_context: Any, left: Any, right: Any) -> Any:
    """The larger of two vectors, lane by lane; where right is NaN, left."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right = (Lanes(builder, value) for value in arguments)
        return left.where_below(right, right, left).value

    return left(left, right), generate


@intrinsic
def exp2_near(typing_context: Any, x: Any, factor: Any) -> Any:
    """2^(x factor) where |x factor| <= NEAR."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, factor = (Lanes(builder, value) for value in arguments)
        return near_exp2(x, factor).value

    return x(x, factor), generate


def _elementary(formula: Callable[[Lanes], Lanes], meaning: str) -> Any:
    def function(typing_context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return formula(Lanes(builder, arguments[0])).value

        return x(x), generate

    function.__doc__ = meaning
    return intrinsic(function)


exp2 = _elementary(_exp2, "2^x; the smallest normal number stands for everything below it.")
softplus = _elementary(_softplus, "log(1 + e^x), and x itself above 20.")
softplus_slope = _elementary(_softplus_slope, "The derivative of `softplus`: 1 / (1 + e^-x), and 1 above 20.")
sigmoid = _elementary(_sigmoid, "1 / (1 + e^-x).")
