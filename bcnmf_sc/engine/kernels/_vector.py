"""Four non-zeros of a row at a time in explicit vector instructions.

Loops over topics are too short (8 to 40) for LLVM's loop vectoriser: run-time checks for overlap, remainder loops and
one horizontal sum for each non-zero cost more than the arithmetic. Here the vectors are written explicitly, eight
numbers wide on any machine (LLVM splits them for smaller registers), and the four sums form one vector that is divided
at once. Arrays must be C-contiguous, with a multiple of eight topics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

LANES = 8
STEP = 4
_INT, _LANE = ir.IntType(64), ir.IntType(32)
_FAST = ("fast",)


def _pick(b: Any, x: Any, y: Any, lanes: list[int]) -> Any:
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(_LANE, len(lanes)), lanes))


def _spread(b: Any, number: Any, n: int) -> Any:
    empty = ir.Constant(ir.VectorType(number.type, n), ir.Undefined)
    return _pick(b, b.insert_element(empty, number, ir.Constant(_LANE, 0)), empty, [0] * n)


def _at(b: Any, pointer: Any, at: Any, n: int) -> Any:
    vector = ir.VectorType(pointer.type.pointee, n)
    return b.bitcast(b.gep(pointer, [at]), ir.PointerType(vector))


def _aligned(b: Any, pointer: Any, value: Any = None) -> Any:
    """Load or store at the alignment of a single number."""
    one = pointer.type.pointee.element
    move = b.load(pointer) if value is None else b.store(value, pointer)
    move.align = 4 if isinstance(one, ir.FloatType) else 8
    return move


def _add(b: Any, x: Any, y: Any) -> Any:
    return b.fadd(x, y, flags=_FAST)


def _add_product(b: Any, x: Any, y: Any, z: Any) -> Any:
    return b.fadd(x, b.fmul(y, z, flags=_FAST), flags=_FAST)


def _ratios(
    b: Any, W: Any, h: Any, indices: Any, values: Any, at: Any, width: Any, tiny: Any
) -> tuple[list[Any], list[Any]]:
    """Offsets of the four rows of W, and value / (W h) of each, broadcast over a vector."""
    offsets = [b.mul(b.zext(b.load(b.gep(indices, [b.add(at, _INT(q))])), _INT), width) for q in range(STEP)]
    zero = ir.Constant(ir.VectorType(W.type.pointee, LANES), [0.0] * LANES)
    sums = [cgutils.alloca_once(b, zero.type) for _ in range(STEP)]
    for place in sums:
        b.store(zero, place)
    with cgutils.for_range_slice(b, _INT(0), width, _INT(LANES)) as (k, _):
        usage = _aligned(b, _at(b, h, k, LANES))
        for offset, place in zip(offsets, sums, strict=True):
            loading = _aligned(b, _at(b, W, b.add(offset, k), LANES))
            b.store(_add_product(b, b.load(place), usage, loading), place)
    halves = []
    for place in sums:
        v = b.load(place)
        halves.append(_add(b, _pick(b, v, v, [0, 1, 2, 3]), _pick(b, v, v, [4, 5, 6, 7])))
    pairs = [
        _add(b, _pick(b, x, y, [0, 4, 1, 5]), _pick(b, x, y, [2, 6, 3, 7]))
        for x, y in ((halves[0], halves[1]), (halves[2], halves[3]))
    ]
    mu = _add(b, _pick(b, pairs[0], pairs[1], [0, 1, 4, 5]), _pick(b, pairs[0], pairs[1], [2, 3, 6, 7]))
    ratio = b.fdiv(_aligned(b, _at(b, values, at, STEP)), _add(b, mu, _spread(b, tiny, STEP)))
    return offsets, [_pick(b, ratio, ratio, [q] * LANES) for q in range(STEP)]


def _pointers(context: Any, b: Any, signature: Any, args: Any) -> list[Any]:
    return [
        context.make_array(kind)(context, b, arg).data for kind, arg in zip(signature.args[:5], args[:5], strict=True)
    ]


@intrinsic
def add_pull(
    typing: Any, W: Any, h: Any, up: Any, indices: Any, values: Any, at: Any, width: Any, tiny: Any
) -> tuple[Any, Callable[..., Any]]:
    """``up += sum of x / (W h) * W[j]`` over the four non-zeros from ``at`` on."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        W, h, up, indices, values = _pointers(context, b, signature, args)
        at, width, tiny = args[5:]
        offsets, ratios = _ratios(b, W, h, indices, values, at, width, tiny)
        with cgutils.for_range_slice(b, _INT(0), width, _INT(LANES)) as (k, _):
            place = _at(b, up, k, LANES)
            total = _aligned(b, place)
            for offset, ratio in zip(offsets, ratios, strict=True):
                total = _add_product(b, total, ratio, _aligned(b, _at(b, W, b.add(offset, k), LANES)))
            _aligned(b, place, total)
        return context.get_dummy_value()

    return types.void(W, h, up, indices, values, types.int64, types.int64, tiny), generate


@intrinsic
def add_outer(
    typing: Any, W: Any, h: Any, p: Any, indices: Any, values: Any, at: Any, width: Any, tiny: Any, weight: Any
) -> tuple[Any, Callable[..., Any]]:
    """``p[j] += weight * x / (W h) * h`` for the four non-zeros from ``at`` on."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        W, h, p, indices, values = _pointers(context, b, signature, args)
        at, width, tiny, weight = args[5:]
        offsets, ratios = _ratios(b, W, h, indices, values, at, width, tiny)
        weights = _spread(b, weight, LANES)
        ratios = [b.fmul(ratio, weights, flags=_FAST) for ratio in ratios]
        with cgutils.for_range_slice(b, _INT(0), width, _INT(LANES)) as (k, _):
            usage = _aligned(b, _at(b, h, k, LANES))
            for offset, ratio in zip(offsets, ratios, strict=True):
                place = _at(b, p, b.add(offset, k), LANES)
                _aligned(b, place, _add_product(b, _aligned(b, place), ratio, usage))
        return context.get_dummy_value()

    return types.void(W, h, p, indices, values, types.int64, types.int64, tiny, weight), generate
