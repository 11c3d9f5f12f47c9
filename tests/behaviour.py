"""A small model with its map, to be changed for a moment and looked into: what the checks of `behaviour_*.py` are made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os.path import commonpath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selectune.components import Component, map_model, views
from small import HIDDEN

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WORDS = torch.tensor([[3, 11, 5, 8, 14, 4, 9, 7]])
Run = Callable[["PreTrainedModel", Tensor], Any]
"""How a type is run: the model and its words, to what it gives."""


@dataclass(kw_only=True)
class Findings:
    """What was checked of one model, what could not be, with the reason, and what does not hold."""

    checked: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    def say(self, what: str, holds: bool, fault: str) -> None:
        """Notes one claim; a name counts as checked only where all claims about it hold."""
        if not holds:
            self.wrong[what] = fault
        if what in self.wrong:
            self.checked = [name for name in self.checked if name != what]
        elif what not in self.checked:
            self.checked.append(what)


class Subject:
    """A small model with its map."""

    def __init__(self, net: PreTrainedModel, run: Run | None = None) -> None:
        self.net = net
        self.parameters = dict(net.named_parameters())
        self.components: dict[str, list[Component]] = {}
        for component in map_model(net, "small").components:
            self.components.setdefault(component.name, []).append(component)
        self.run = run or self.on_words
        with torch.no_grad():
            # Initial values hide faults: zero biases, norms of one.
            generator = torch.Generator().manual_seed(1)
            for parameter in self.parameters.values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)

    def on_words(self, net: PreTrainedModel, words: Tensor) -> Any:
        """Words alone; the decoder reads them too, and a decoder that attends to an encoder is given five states to look at."""
        asked = inspect.signature(net.forward).parameters
        more: dict[str, Tensor] = {}
        if "decoder_input_ids" in asked:
            more["decoder_input_ids"] = words
        elif "encoder_hidden_states" in asked and any(".cross." in name for name in self.components):
            more["encoder_hidden_states"] = noise(1, 5, HIDDEN)
        return net(input_ids=words, **more)

    def layers(self, tower: str) -> dict[int, list[str]]:
        """By index, the names of what lies in each layer of the tower."""
        found: dict[int, list[str]] = {}
        for name in self.components:
            index, _, role = name.removeprefix(f"{tower}.").partition(".")
            if name.startswith(f"{tower}.") and index.isdigit() and role:
                found.setdefault(int(index), []).append(name)
        return dict(sorted(found.items()))

    def layer(self, tower: str, *roles: str) -> str | None:
        """The first layer of the tower that has all the roles: `language.layers.0`."""
        places = (f"{tower}.{index}" for index in self.layers(tower))
        return next((place for place in places if all(f"{place}.{role}" in self.components for role in roles)), None)

    @contextmanager
    def scaled(self, names: Sequence[str], factor: float, *, biases: bool = False) -> Iterator[None]:
        """Inside, every element of the components (or of their biases alone) is `factor` times what it is."""
        parts = [one for name in names for one in self.components[name] if not biases or one.parameter.endswith("bias")]
        touched = [view for one in parts for view in self.views(one)]
        before = [view.clone() for view in touched]
        with torch.no_grad():
            for view in touched:
                view *= factor
        try:
            yield
        finally:
            with torch.no_grad():
                for view, values in zip(touched, before, strict=True):
                    view.copy_(values)

    def views(self, component: Component) -> list[Tensor]:
        """Views of the component's elements, in the order of its ranges."""
        return list(views(self.parameters[component.parameter].detach(), component.slice))

    def owner(self, name: str) -> str:
        """The path of the module that holds the component's parameters: the first, of a name that stands for several."""
        return self.components[name][0].parameter.rpartition(".")[0]

    def around(self, names: Sequence[str]) -> str:
        """The path of the innermost module that all the components lie in."""
        paths = [one.parameter.rpartition(".")[0].replace(".", "/") for name in names for one in self.components[name]]
        return commonpath(paths).replace("/", ".")

    @torch.no_grad()
    def output(self, path: str, *, once: bool = False) -> Tensor:
        """What the module at `path` gives, the first time.

        Where it is never called (or, with `once`, not exactly once), what the nearest module around it gives.
        """
        words = path.split(".")
        around = [".".join(words[:count]) for count in range(len(words), 0, -1)]
        seen: dict[str, list[Tensor]] = {name: [] for name in around}

        def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda _module, _inputs, output: seen[name].append(first(output).clone())

        handles = [self.net.get_submodule(name).register_forward_hook(note(name)) for name in around]
        try:
            self.run(self.net, WORDS)
        finally:
            for handle in handles:
                handle.remove()
        called = [name for name in around if seen[name]]
        found = next((name for name in called if not once or len(seen[name]) == 1), called[0])
        return seen[found][0]

    @torch.no_grad()
    def inputs(self, *paths: str) -> list[Tensor] | None:
        """What enters each of the modules the first time; None where one of them is never called, or with no tensor."""
        seen: dict[str, Tensor] = {}

        def note(path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
            def keep(_module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
                found = next(tensors((*inputs, *options.values())), None)
                if found is not None:
                    seen.setdefault(path, found.clone())

            return keep

        handles = [self.net.get_submodule(path).register_forward_pre_hook(note(path), with_kwargs=True) for path in paths]
        try:
            self.run(self.net, WORDS)
        finally:
            for handle in handles:
                handle.remove()
        return [seen[path] for path in paths] if len(seen) == len(set(paths)) else None

    @torch.no_grad()
    def logits(self, words: Tensor = WORDS) -> Tensor:
        """The first thing that the model gives."""
        return first(self.run(self.net, words).to_tuple()).clone()


def noise(*shape: int) -> Tensor:
    """The same random numbers each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def first(values: Any) -> Tensor:
    """The first floating tensor among the values, however deep."""
    return next(tensors(values))


def tensors(values: Any) -> Iterator[Tensor]:
    """Every floating tensor in nested tuples, lists and outputs."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from tensors(value)
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors(value)


def near(left: Tensor, right: Tensor, scale: Tensor) -> bool:
    """Whether two tensors are equal up to rounding, for values as large as `scale`."""
    return left.shape == right.shape and bool((left - right).norm() <= 1e-4 * scale.norm())
