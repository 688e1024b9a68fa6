"""Inner products of every row's gradient with given directions, while back-propagating once.

For each module that owns weights the gradient of each row of the batch is formed, for a moment and
in pieces, from the module's input and the gradient at its output, and multiplied with the
directions (design section 7.1): no gradient of a row is ever kept. Autograd itself forms no
gradient of weights in such a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers.pytorch_utils import Conv1D

Directions = Mapping[str, Tensor]
"""Parameter name -> [directions, *the parameter's shape]; one name for a tied matrix, and its
direction is that of all its uses together."""

BLOCK_ELEMENTS = 1 << 23
"""Numbers of the rows' gradients that are formed at a time."""


class UnsplitError(Exception):
    """A module's input does not show which row its entries belong to."""


@dataclass
class Products:
    """Collects ``found[parameter][row, direction]`` from the backward pass of one batch."""

    model: nn.Module
    directions: Directions
    found: dict[str, Tensor] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0
    _busy: bool = False

    @contextmanager
    def collecting(self, rows: int, tokens: int) -> Iterator[dict[str, Tensor]]:
        """For one forward of [rows, tokens] and any number of backward passes inside it."""
        self.rows, self.tokens, self.found = rows, tokens, {}
        with ExitStack() as stack:
            stack.enter_context(trainable(self.model, ()))
            for module, names in owners(self.model, self.directions):
                handle = module.register_forward_hook(self._hook(names), with_kwargs=True)
                stack.callback(handle.remove)
            yield self.found

    def add(self, name: str, scores: Tensor) -> None:
        """Add [rows, directions] to a parameter's products."""
        scores = scores.float()
        self.found[name] = self.found[name] + scores if name in self.found else scores

    def split(self, value: Tensor) -> Tensor:
        """A module's input or output as [rows, entries of a row, features]."""
        rows = value.shape[0]
        flat = value.dim() == 2 and rows == self.rows * self.tokens
        if rows != self.rows and not flat and self.rows > 1:
            raise UnsplitError
        return value.reshape(self.rows, -1, value.shape[-1])

    def _hook(self, names: Mapping[str, str]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if self._busy or not torch.is_grad_enabled():
                return None
            inputs, inputs_form = tree_flatten((args, kwargs))
            outputs, outputs_form = tree_flatten(output)
            floats = _floats(outputs)
            read = _reader(module, names, [outputs[place] for place in floats])
            call = _Call(self, module, names, read, inputs, inputs_form, floats)
            anchor = torch.zeros((), requires_grad=True)
            saved = [leaf for leaf in inputs if isinstance(leaf, Tensor)]
            passed = [outputs[place] for place in floats]
            tapped = _Tap.apply(call, anchor, saved, *passed)  # type: ignore[no-untyped-call]
            for place, tensor in zip(floats, tapped, strict=True):
                outputs[place] = tensor
            return tree_unflatten(outputs, outputs_form)

        return hook


@contextmanager
def trainable(model: nn.Module, names: Sequence[str] | Directions) -> Iterator[None]:
    """While it lasts, only the named parameters take gradients."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


def owners(
    model: nn.Module, wanted: Directions | Sequence[str]
) -> Iterator[tuple[nn.Module, dict[str, str]]]:
    """Modules that own wanted parameters, with {its own name for one: the model's name}."""
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        own = {
            name: known[id(parameter)]
            for name, parameter in module.named_parameters(recurse=False)
            if known.get(id(parameter)) in wanted
        }
        if own:
            yield module, own


def _floats(outputs: Sequence[Any]) -> list[int]:
    return [
        place
        for place, leaf in enumerate(outputs)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


@dataclass
class _Call:
    """One call of a module: what its backward needs besides its tensors."""

    products: Products
    module: nn.Module
    names: Mapping[str, str]
    read: Callable[[_Call, list[Tensor | None], list[Tensor]], None]
    leaves: list[Any]
    form: Any
    outputs: list[int]

    def __post_init__(self) -> None:
        # the tensors themselves belong to autograd, so that checkpointing can drop them
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        self.tensors = [place for place, leaf in enumerate(self.leaves) if leaf is None]

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        leaves = list(self.leaves)
        for place, tensor in zip(self.tensors, tensors, strict=False):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self.form)
        return args, kwargs

    def call(self, weights: Mapping[str, Tensor], tensors: Sequence[Any]) -> Any:
        args, kwargs = self.arguments(tensors)
        self.products._busy = True
        try:
            return functional_call(self.module, dict(weights), args, kwargs)
        finally:
            self.products._busy = False


class _Tap(torch.autograd.Function):
    """Passes a module's outputs on and reads the gradients that come back for them."""

    @staticmethod
    def forward(
        ctx: Any, call: _Call, anchor: Tensor, saved: list[Tensor], *outputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        return tuple(output.view_as(output) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.call.read(ctx.call, list(gradients), list(ctx.saved_tensors))
        return None, None, None, *gradients


def _reader(
    module: nn.Module, names: Mapping[str, str], outputs: Sequence[Tensor]
) -> Callable[..., None]:
    kind = type(module)
    if isinstance(module, nn.Linear) and kind.forward is nn.Linear.forward:
        return _read_linear
    if isinstance(module, Conv1D):
        return _read_conv1d
    if isinstance(module, nn.Embedding) and set(names) == {"weight"}:
        return _read_embedding
    shapes = {tuple(parameter.shape) for parameter in module.parameters(recurse=False)}
    if len(outputs) == 1 and shapes == {tuple(outputs[0].shape[-1:])}:
        return _read_scale
    return _read_replayed


def _read_linear(call: _Call, gradients: list[Tensor | None], inputs: list[Tensor]) -> None:
    _read_matrix(call, gradients[0], inputs[0], transposed=False)


def _read_conv1d(call: _Call, gradients: list[Tensor | None], inputs: list[Tensor]) -> None:
    _read_matrix(call, gradients[0], inputs[0], transposed=True)


def _read_matrix(call: _Call, gradient: Tensor | None, inputs: Tensor, transposed: bool) -> None:
    if gradient is None:
        return
    products = call.products
    g, a = products.split(gradient), products.split(inputs)
    if "bias" in call.names:
        name = call.names["bias"]
        products.add(name, g.sum(1) @ products.directions[name].to(g.dtype).T)
    if "weight" in call.names:
        name = call.names["weight"]
        left, right = (a, g) if transposed else (g, a)
        products.add(name, matrix_products(left, right, products.directions[name]))


def matrix_products(left: Tensor, right: Tensor, directions: Tensor) -> Tensor:
    """<sum_t left_t right_t^T, direction> for every row and direction, [rows, directions].

    The rows' gradients [rows, m, n] are formed block by block and multiplied with the directions
    [directions, m, n]; ``left`` is [rows, tokens, m], ``right`` [rows, tokens, n].
    """
    rows, size = len(left), directions.shape[1]
    step = max(1, BLOCK_ELEMENTS // (rows * right.shape[-1]))
    scores = torch.zeros(rows, len(directions), device=left.device)
    for start in range(0, size, step):
        part = slice(start, start + step)
        block = torch.bmm(left[:, :, part].transpose(1, 2), right).flatten(1)
        scores += (block @ directions[:, part].flatten(1).to(block.dtype).T).float()
    return scores


def _read_embedding(call: _Call, gradients: list[Tensor | None], inputs: list[Tensor]) -> None:
    gradient, ids, module = gradients[0], inputs[0], cast(nn.Embedding, call.module)
    if gradient is None:
        return
    products, name = call.products, call.names["weight"]
    g = products.split(gradient) * getattr(module, "embed_scale", 1.0)
    ids = ids.reshape(g.shape[:2])
    if module.padding_idx is not None:
        g = g * ids.ne(module.padding_idx).unsqueeze(-1)
    scores = [(each[ids].to(g.dtype) * g).float().sum((1, 2)) for each in products.directions[name]]
    products.add(name, torch.stack(scores, dim=1))


def _read_scale(call: _Call, gradients: list[Tensor | None], inputs: list[Tensor]) -> None:
    """Norms: the output is linear in the weight, entry by entry, with slope f(1) - f(0)."""
    gradient = gradients[0]
    if gradient is None:
        return
    products = call.products
    g = products.split(gradient)
    own = dict(call.module.named_parameters(recurse=False))
    zeros = {name: torch.zeros_like(parameter) for name, parameter in own.items()}
    for name in call.names:
        ones = zeros | {name: torch.ones_like(own[name])}
        with torch.no_grad():
            slope = call.call(ones, inputs) - call.call(zeros, inputs)
        of_rows = (g * products.split(slope)).sum(1)
        direction = products.directions[call.names[name]].to(of_rows.dtype)
        products.add(call.names[name], of_rows @ direction.T)


def _read_replayed(call: _Call, gradients: list[Tensor | None], inputs: list[Tensor]) -> None:
    """Anything else (fused experts, routers): run it again for each row, with autograd."""
    products = call.products
    scores: dict[str, list[Tensor]] = {name: [] for name in call.names.values()}
    for row in range(products.rows):
        weights = {n: call.module.get_parameter(n).detach().requires_grad_() for n in call.names}
        with torch.enable_grad():
            again = call.call(weights, [_of_row(products, t.detach(), row) for t in inputs])
        leaves = tree_flatten(again)[0]
        pairs = [
            (leaves[place], _of_row(products, gradient, row))
            for place, gradient in zip(call.outputs, gradients, strict=True)
            if gradient is not None and leaves[place].requires_grad
        ]
        found = torch.autograd.grad(
            [output for output, _ in pairs],
            list(weights.values()),
            [gradient for _, gradient in pairs],
            allow_unused=True,
        )
        for name, gradient in zip(call.names.values(), found, strict=True):
            scores[name].append(_dot(gradient, products.directions[name]))
    for name, rows in scores.items():
        products.add(name, torch.stack(rows))


def _of_row(products: Products, value: Tensor, row: int) -> Tensor:
    if products.rows == 1 or value.dim() == 0:
        return value
    if value.shape[0] == products.rows:
        return value[row : row + 1]
    if value.shape[0] == products.rows * products.tokens:
        return value[row * products.tokens : (row + 1) * products.tokens]
    raise UnsplitError


def _dot(gradient: Tensor | None, directions: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros(len(directions), device=directions.device)
    return (directions.flatten(1).to(gradient.dtype) @ gradient.flatten()).float()
