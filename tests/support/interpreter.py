"""Triton's interpreter as the suite uses it: faster, and with the sums of a device."""

from __future__ import annotations

import contextlib
import dataclasses
import os

import numpy as np


def patch_repetition() -> None:
    """Triton's interpreter patches its language modules anew at every device function call, half of its time, and makes
    a dictionary of dtypes at every operation."""
    from triton.runtime import interpreter

    function, patched = interpreter.InterpretedFunction, set()
    run, patch = function.run, interpreter._patch_lang

    def run_forgetting(self, *args, **kwargs):
        patched.clear()  # a launch takes its patches back when it ends
        return run(self, *args, **kwargs)

    def call(self, *args, **kwargs):
        if id(self.fn.__globals__) not in patched:
            patch(self.fn)
            patched.add(id(self.fn.__globals__))
        return self.rewrite()(*args, **kwargs)

    np_dtype, known = interpreter._get_np_dtype, {}

    def get_np_dtype(dtype):
        name = dtype.scalar.name
        if name not in known:
            known[name] = np_dtype(dtype.scalar)
        return known[name]

    function.run, function.__call__, interpreter._get_np_dtype = run_forgetting, call, get_np_dtype


def patch_dot() -> None:
    """A device sums each element of tl.dot in one order, whatever the tile; BLAS sums it as shape and position suggest.

    In fp64, rounded once, an element has one value again: the one that a later kernel recomputes in another tile.
    """
    from triton.runtime import interpreter

    dot = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, *options):
        if any(t.data.dtype not in (np.float16, np.float32) for t in (a, b, d)):
            return dot(self, a, b, d, *options)
        wide = np.matmul(a.data, b.data, dtype=np.float64) + d.data
        return interpreter.TensorHandle(wide.astype(d.data.dtype), d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot


def patch_reduce() -> None:
    """Combine halves of a block in reductions by a custom function, as a device does, not one element at a time."""
    from triton.runtime import interpreter

    def generic_reduce(self, input):
        tensors, axis = self.unravel(input, self.axis)
        data = [tensor.handle.data for tensor in tensors]
        while data[0].shape[axis] > 1:
            halves = zip(*(np.split(d, 2, axis) for d in data), strict=True)
            blocks = [self.to_tensor(d, t.dtype) for half in halves for d, t in zip(half, tensors, strict=True)]
            combined = self.combine_fn.fn(*blocks)
            data = [t.handle.data for t in (combined if isinstance(combined, tuple) else (combined,))]
        if self.axis is None:
            data = [d.reshape((1,) * len(input[0].shape)) if self.keep_dims else d.item() for d in data]
        elif not self.keep_dims:
            data = [d.squeeze(axis) for d in data]
        return [self.to_tensor(d, t.dtype) for d, t in zip(data, tensors, strict=True)]

    interpreter.ReduceOps.generic_reduce = generic_reduce


def patch_types() -> None:
    """Every operation makes types, shapes and types of tuples that an earlier one made: take those again. A sum of
    integers is made a second time, for a check of overflow that only the debug mode looks at."""
    from triton.language import core, semantic
    from triton.runtime import interpreter

    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=options.debug)

    make_block, make_tensor, make_tuple = (c.__init__ for c in (core.block_type, core.tensor, core.tuple))
    broadcast, blocks = semantic.TritonSemantic.broadcast_impl_value, {}

    def block_type(self, element_ty, shape):
        key = (element_ty, *(s.value if isinstance(s, core.constexpr) else s for s in shape))
        if key not in blocks:
            make_block(self, element_ty, shape)
            blocks[key] = {**vars(self), "of_tensors": {}}
        vars(self).update(blocks[key])

    def tensor(self, handle, type):
        known = vars(type).setdefault("of_tensors", {})
        if not known:
            make_tensor(self, handle, type)
            known.update(vars(self))
            del known["handle"]
        vars(self).update(known, handle=handle, type=type)

    class Type:
        """Type of a tuple, made when it is asked for."""

        def __get__(self, of, _):
            of.type = core._type_for_tuple_values(of.values)
            return of.type

    def tuple_(self, args, type=None):
        if type is None:
            self.values = list(args)
        else:
            make_tuple(self, args, type)

    def broadcast_impl_value(self, lhs, rhs):
        alike = lhs.type.is_block() and rhs.type.is_block() and [*lhs.type.shape] == [*rhs.type.shape]
        return (lhs, rhs) if alike else broadcast(self, lhs, rhs)

    core.block_type.__init__, core.tensor.__init__, core.tuple.__init__ = block_type, tensor, tuple_
    semantic.TritonSemantic.broadcast_impl_value = broadcast_impl_value
    core.tuple.type = Type()
    core.pointer_type.__hash__ = core.dtype.__hash__


if os.environ.get("TRITON_INTERPRET") == "1":
    with contextlib.suppress(ImportError, AttributeError):
        patch_repetition()
        patch_dot()
        patch_reduce()
        patch_types()
