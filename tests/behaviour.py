"""What a component's name claims, checked by what the model does; the mapper's own tables are not asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os.path import commonpath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selectune.components import Component, map_model, views

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WORDS = torch.tensor([[3, 11, 5, 8, 14, 4, 9, 7]])


@dataclass(kw_only=True)
class Findings:
    """What was checked of one model, and what could not be, with the reason."""

    checked: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)


class Subject:
    """A small model with its map, to be changed for a moment and looked into."""

    def __init__(self, net: PreTrainedModel, run: Callable[[PreTrainedModel], Any] | None = None) -> None:
        self.net = net
        self.run = run or (lambda net: net(input_ids=WORDS))
        self.parameters = dict(net.named_parameters())
        self.components: dict[str, list[Component]] = {}
        for component in map_model(net, "small").components:
            self.components.setdefault(component.name, []).append(component)
        with torch.no_grad():
            # Initial values hide faults: zero biases, norms of one.
            generator = torch.Generator().manual_seed(1)
            for parameter in self.parameters.values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)

    def layer(self, role: str) -> str | None:
        """The full name of the first layer's component in `role`."""
        found = (name for name in self.components if name.startswith("language.layers.") and name.split(".", 3)[3:] == [role])
        return min(found, key=lambda name: int(name.split(".")[2]), default=None)

    @contextmanager
    def scaled(self, name: str, factor: float) -> Iterator[None]:
        """Inside, every element of the component is `factor` times what it is."""
        touched = [view for one in self.components[name] for view in self._views(one)]
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

    def _views(self, component: Component) -> list[Tensor]:
        tensor = self.parameters[component.parameter].detach()
        return [tensor] if component.slice is None else list(views(tensor, component.slice))

    def owner(self, name: str) -> tuple[str, nn.Module]:
        """The module that holds the component's parameters."""
        path = self.components[name][0].parameter.rpartition(".")[0]
        return path, self.net.get_submodule(path)

    @torch.no_grad()
    def output(self, path: str) -> Tensor:
        """What the module at `path` gives, first time, without its own bias."""
        module = self.net.get_submodule(path)
        seen: list[Tensor] = []
        handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(_first(output).clone()))
        try:
            self.run(self.net)
        finally:
            handle.remove()
        bias = getattr(module, "bias", None)
        return seen[0] - (bias if isinstance(bias, Tensor) else 0)


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else next(value for value in output if isinstance(value, Tensor))


def check_mlp(subject: Subject, found: Findings) -> None:
    """`up` times 2 doubles what comes out and `gate` times 2 does not; `down` or `gate` at zero silences it."""
    down, up, gate = (subject.layer(f"mlp.{role}") for role in ("down", "up", "gate"))
    if down is None or up is None:
        found.left["mlp"] = "no dense MLP of up and down in any layer"
        return
    path, _ = subject.owner(down)
    plain = subject.output(path)
    if plain.norm() == 0:
        found.left["mlp"] = "the MLP gives nothing to compare"
        return
    with subject.scaled(down, 0.0):
        _say(found, "mlp.down", _near(subject.output(path), torch.zeros_like(plain), plain), "at zero it does not silence the MLP")
    if gate is None:
        with subject.scaled(up, 2.0):
            _say(found, "mlp.up", not _near(subject.output(path), plain, plain), "twice its values change nothing")
        return
    with subject.scaled(up, 2.0):
        _say(found, "mlp.up", _near(subject.output(path), 2 * plain, plain), "twice its values do not double the MLP")
    with subject.scaled(gate, 2.0):
        _say(found, "mlp.gate", not _near(subject.output(path), 2 * plain, plain), "twice its values double the MLP, as up's do")
    with subject.scaled(gate, 0.0):
        _say(found, "mlp.gate", _near(subject.output(path), torch.zeros_like(plain), plain), "at zero it does not silence the MLP")


def check_attention(subject: Subject, found: Findings) -> None:
    """`v` at zero silences attention; with `q` at zero, `k` decides nothing, and before it did."""
    o, q, k, v = (subject.layer(f"attn.{role}") for role in ("o", "q", "k", "v"))
    if o is None or q is None or k is None or v is None:
        found.left["attn"] = "no attention of q, k, v and o in any layer"
        return
    path, _ = subject.owner(o)
    plain = subject.output(path)
    with subject.scaled(v, 0.0):
        _say(found, "attn.v", _near(subject.output(path), torch.zeros_like(plain), plain), "at zero it does not silence attention")
    with subject.scaled(o, 0.0):
        _say(found, "attn.o", _near(subject.output(path), torch.zeros_like(plain), plain), "at zero it does not silence attention")
    with subject.scaled(k, -1.5):
        _say(found, "attn.k", not _near(subject.output(path), plain, plain), "other keys change nothing")
    # A norm's bias after q would be a query of its own.
    norms = [name for name in (subject.layer("attn.q_norm"),) if name is not None]
    with _all_scaled(subject, [q, *norms], 0.0):
        blind = subject.output(path)
        _say(found, "attn.q", not _near(blind, torch.zeros_like(plain), plain), "at zero it silences attention, as v does")
        with subject.scaled(k, -1.5):
            _say(found, "attn.q", _near(subject.output(path), blind, plain), "at zero, keys still decide")


def check_layers(subject: Subject, found: Findings) -> None:
    """Changing the last layer leaves what enters it bit-identical, and changes what the model gives."""
    names = [name for name in subject.components if name.startswith("language.layers.")]
    last = max((int(name.split(".")[2]) for name in names if name.split(".")[2].isdigit()), default=0)
    if last == 0:
        found.left["layers"] = "fewer than two layers"
        return
    inside = [name for name in names if name.split(".")[2] == str(last)]
    module = commonpath([subject.components[name][0].parameter.rpartition(".")[0].replace(".", "/") for name in inside]).replace("/", ".")
    seen: list[Tensor] = []

    def note(_module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen.append(_first((*inputs, *options.values())).clone())

    handle = subject.net.get_submodule(module).register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            before = _first(subject.run(subject.net).to_tuple()).clone()
            with _all_scaled(subject, inside, 1.5):
                after = _first(subject.run(subject.net).to_tuple())
    finally:
        handle.remove()
    _say(found, "layers", torch.equal(seen[0], seen[-1]), f"layer {last} changes what enters it")
    _say(found, "layers", not torch.equal(before, after), f"layer {last} changes nothing")


@contextmanager
def _all_scaled(subject: Subject, names: list[str], factor: float) -> Iterator[None]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        for name in names:
            stack.enter_context(subject.scaled(name, factor))
        yield


def _near(left: Tensor, right: Tensor, scale: Tensor) -> bool:
    return bool((left - right).norm() <= 1e-4 * scale.norm())


def _say(found: Findings, what: str, holds: bool, fault: str) -> None:
    if not holds:
        found.wrong[what] = fault
    elif what not in found.checked:
        found.checked.append(what)
