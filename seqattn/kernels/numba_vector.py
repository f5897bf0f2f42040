"""Sixteen numbers as one value inside a Numba kernel: loads, stores, arithmetic, and a few elementary functions.

LLVM's automatic vectorisation gives up on a recurrence over time, which is what a scan is; with an explicit vector of
channels every operation is one or two machine instructions on any CPU, and a state stays in registers.
`load`, `store`, `broadcast` and `lane_sum` move vectors; + - * and `exp2`, `softplus`, `sigmoid` work lane by lane.
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
    """LANES numbers of one floating type."""

    def __init__(self, element: types.Float) -> None:
        self.element = element
        super().__init__(name=f"Vector({element})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: VectorType) -> None:
        element = ir.FloatType() if vector.element == types.float32 else ir.DoubleType()
        super().__init__(manager, vector, ir.VectorType(element, LANES))


def _splat(builder: Any, scalar: Any) -> Any:
    vector = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    first = builder.insert_element(vector, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, vector, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to element `index` of the flat data of a C-contiguous array, as a pointer to a vector."""
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    element = ir.FloatType() if array_type.dtype == types.float32 else ir.DoubleType()
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(element, LANES).as_pointer())


@intrinsic
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """The LANES elements of a C-contiguous array from flat position `index` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _address(context, builder, array, arguments[0], arguments[1])
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return VectorType(array.dtype)(array, types.intp), generate


@intrinsic
def store(typing_context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write a vector to a C-contiguous array from flat position `index` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _address(context, builder, array, arguments[0], arguments[1])
        builder.store(arguments[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def broadcast(typing_context: Any, scalar: Any) -> Any:
    """A vector with the same number in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0])

    return VectorType(scalar)(scalar), generate


@intrinsic
def lane_sum(typing_context: Any, vector: Any) -> Any:
    """The sum over the lanes, always in the same order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, half = arguments[0], LANES // 2
        while half:  # fold the upper half onto the lower
            kind = ir.VectorType(ir.IntType(32), half)
            low = builder.shuffle_vector(value, value, ir.Constant(kind, list(range(half))))
            high = builder.shuffle_vector(value, value, ir.Constant(kind, list(range(half, 2 * half))))
            value, half = builder.fadd(low, high), half // 2
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return vector.element(vector), generate


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


class _Lanes:
    """A vector while LLVM code is generated: Python's operators emit the instructions, numbers are broadcast."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value
        self.single = isinstance(value.type.element, ir.FloatType)

    def _emit(self, instruction: str, other: Any) -> "_Lanes":
        return _Lanes(self.builder, getattr(self.builder, instruction)(self.value, self._raw(other), flags=("contract",)))

    def _raw(self, other: Any) -> Any:
        return other.value if isinstance(other, _Lanes) else ir.Constant(self.value.type, [float(other)] * LANES)

    def __add__(self, other: Any) -> "_Lanes":
        return self._emit("fadd", other)

    def __sub__(self, other: Any) -> "_Lanes":
        return self._emit("fsub", other)

    def __mul__(self, other: Any) -> "_Lanes":
        return self._emit("fmul", other)

    def __truediv__(self, other: Any) -> "_Lanes":
        return self._emit("fdiv", other)

    def where_below(self, bound: float, below: Any, otherwise: Any) -> "_Lanes":
        """`below` where self < bound, else (NaN too) `otherwise`."""
        chosen = self.builder.fcmp_ordered("<", self.value, self._raw(bound))
        return _Lanes(self.builder, self.builder.select(chosen, self._raw(below), self._raw(otherwise)))

    def polynomial(self, coefficients: Sequence[float]) -> "_Lanes":
        """c_0 + c_1 x + c_2 x² + …"""
        result = self * coefficients[-1] + coefficients[-2]
        for coefficient in coefficients[-3::-1]:
            result = result * self + coefficient
        return result

    def power_of_two(self, mantissa: int, bias: int) -> "_Lanes":
        """2^i, where self is i + 1.5 · 2^mantissa, whose lowest bits are i."""
        integers = ir.VectorType(ir.IntType(32 if self.single else 64), LANES)
        exponent = self.builder.add(self.builder.bitcast(self.value, integers), ir.Constant(integers, [bias] * LANES))
        bits = self.builder.shl(exponent, ir.Constant(integers, [mantissa] * LANES))
        return _Lanes(self.builder, self.builder.bitcast(bits, self.value.type))


def _exp2(x: _Lanes) -> _Lanes:
    mantissa, bias, lowest, highest = (23, 127, -126, 128) if x.single else (52, 1023, -1022, 1024)
    x = x.where_below(lowest, lowest, x)
    x = (x * -1).where_below(-highest, highest, x)
    shifted = x + 1.5 * 2.0**mantissa  # rounds to an integer
    fraction = x - (shifted - 1.5 * 2.0**mantissa)
    return fraction.polynomial(EXP2_SINGLE if x.single else EXP2_DOUBLE) * shifted.power_of_two(mantissa, bias)


def _exp_minus_abs(x: _Lanes) -> _Lanes:
    return _exp2(x.where_below(0, x, x * -1) * math.log2(math.e))


def _softplus(x: _Lanes) -> _Lanes:
    small = _exp_minus_abs(x)
    s = small / (small + 2)  # log(1 + small) = 2 atanh(s), and s <= 1/3
    series = (s * s).polynomial([2 / odd for odd in range(1, 15 if x.single else 35, 2)])
    logarithm = x.where_below(0, 0, x) + s * series
    return (x * -1).where_below(-20, x, logarithm)


def _sigmoid(x: _Lanes) -> _Lanes:
    small = _exp_minus_abs(x)
    return x.where_below(0, small, 1) / (small + 1)


# 2^x on [-1/2, 1/2]: minimax with relative error 2e-9, and Taylor with 4e-18
EXP2_SINGLE = (
    1.000000000554174, 0.6931472057374946, 0.24022646890593474, 0.05550328776465771, 0.009618488959709546,
    0.0013399931422441317, 0.00015345811784595297,
)  # fmt: skip
EXP2_DOUBLE = tuple(math.log(2) ** n / math.factorial(n) for n in range(14))


def _elementary(formula: Callable[[_Lanes], _Lanes], meaning: str) -> Any:
    def function(typing_context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return formula(_Lanes(builder, arguments[0])).value

        return x(x), generate

    function.__doc__ = meaning
    return intrinsic(function)


exp2 = _elementary(_exp2, "2^x; the smallest normal number stands for everything below it.")
softplus = _elementary(_softplus, "log(1 + e^x), and x itself above 20.")
sigmoid = _elementary(_sigmoid, "1 / (1 + e^-x).")
