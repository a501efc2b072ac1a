"""Work that is due every few steps only, in one network or in a population."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jaxtyping import Array, Bool, Int

from jaxmlp import validate

T = TypeVar("T")


def every(n: int, count: Int[Array, ""], new: Callable[[], T], old: T) -> T:
    """`new()` in each step whose `count` n divides, else `old`; what is not due is not computed.

    Under `vmap` the condition of `jax.lax.cond` would differ between members, and both branches would be computed for
    all of them. Here all members compute where it is due for any.
    """
    if n == 1:
        return new()
    due = count % n == 0
    if validate.concrete(due):
        return new() if due else old

    def some() -> T:
        return jax.tree.map(lambda made, kept: jax.lax.select(due, made, kept), new(), old)

    return jax.lax.cond(_any_member(due), some, lambda: old)


@jax.custom_batching.custom_vmap
def _any_member(due: Bool[Array, ""]) -> Bool[Array, ""]:
    return due


@_any_member.def_vmap
def _over_members(size: int, batched: list[bool], due: Array) -> tuple[Array, bool]:
    return _any_member(due.any(0) if batched[0] else due), False
