"""What the names of a layer's parts claim: each check changes one role and looks at what the layer then does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from behaviour import WORDS, Findings, Subject, near

ENCODER = "language.encoder.layers"
"""What is checked of a text encoder's layers is noted under `encoder.`; that of all other lists of layers, under the role alone."""
BYTES = ("language.local_encoder.", "language.local_decoder.", "language.patcher.")
"""Layers over single bytes, which the byte latent transformer has before and after its own."""
BESIDE = (
    *("gate_proj", "g_proj", "gate_bias", "sinks", "sink_proj", "r_proj", "rel_logits_proj.proj"),
    *("relative_attention_bias", "relative_pos_embeddings", "A", "dt_proj"),
)
"""What weighs words, or what an attention gives, beside queries: gates, sinks, relative positions, a mask made of values."""


def check_roles(subject: Subject, found: Findings) -> None:
    """Every check that the type has parts for."""
    for tower in dict.fromkeys(["language.layers", *(_split(name)[0] for name in subject.components if roles_of([name], beyond=True))]):
        if tower.startswith(BYTES):
            found.left[".".join(tower.split(".")[:2])] = "which bytes make a patch decides what these layers see; they are not looked at"
            continue
        label = "encoder." if tower == ENCODER else ""
        for stem in ("mlp", "moe.shared"):
            check_mlp(subject, found, (tower, label, stem))
        for stem in ("attn", "cross"):
            check_attention(subject, found, (tower, label, stem))
        check_low_rank(subject, found, (tower, label))
        check_experts(subject, found, (tower, label))
        check_layers(subject, found, (tower, label))
    check_mixing(subject, found)


def check_mlp(subject: Subject, found: Findings, part: tuple[str, str, str]) -> None:
    """`up` times 2 doubles what comes out and `gate` times 2 does not; `down` or `gate` at zero silences it."""
    tower, label, stem = part
    place = subject.layer(tower, f"{stem}.down", f"{stem}.up")
    if place is None:
        return
    down, up, gate = (f"{place}.{stem}.{role}" for role in ("down", "up", "gate"))
    with subject.scaled([down], 0.0, biases=True):
        _check_mlp(subject, found, label + stem, (down, up, gate))


def _check_mlp(subject: Subject, found: Findings, stem: str, names: tuple[str, str, str]) -> None:
    down, up, gate = names
    path = subject.owner(down)
    plain = subject.output(path)
    silence = torch.zeros_like(plain)
    if plain.norm() == 0:
        found.left[stem] = "gives nothing to compare"
        return
    with subject.scaled([down], 0.0):
        found.say(f"{stem}.down", near(subject.output(path), silence, plain), "at zero it does not silence the MLP")
    if gate not in subject.components:
        with subject.scaled([up], 2.0):
            found.say(f"{stem}.up", not near(subject.output(path), plain, plain), "twice its values change nothing")
        return
    with subject.scaled([up], 2.0):
        found.say(f"{stem}.up", near(subject.output(path), 2 * plain, plain), "twice its values do not double the MLP")
    with subject.scaled([gate], 2.0):
        found.say(f"{stem}.gate", not near(subject.output(path), 2 * plain, plain), "twice its values double the MLP, as up's do")
    with subject.scaled([gate], 0.0):
        found.say(f"{stem}.gate", near(subject.output(path), silence, plain), "at zero it does not silence the MLP")


def check_attention(subject: Subject, found: Findings, part: tuple[str, str, str]) -> None:
    """`v` or `o` at zero silences attention; with `q` at zero, `k` decides nothing and the values are averaged."""
    tower, label, stem = part
    place = subject.layer(tower, *(f"{stem}.{role}" for role in "qkvo"))
    if place is None:
        return
    q, k, v, o = (f"{place}.{stem}.{role}" for role in "qkvo")
    # A norm's bias after q would be a query of its own.
    query = [name for name in (q, f"{place}.{stem}.q_norm") if name in subject.components]
    with subject.scaled([o], 0.0, biases=True):
        _check_attention(subject, found, label + stem, (query, k, v, o))


def _check_attention(subject: Subject, found: Findings, stem: str, names: tuple[list[str], str, str, str]) -> None:
    query, k, v, o = names
    path = subject.owner(o)
    plain = subject.output(path)
    silence = torch.zeros_like(plain)
    for role, name in (("v", v), ("o", o)):
        with subject.scaled([name], 0.0):
            found.say(f"{stem}.{role}", near(subject.output(path), silence, plain), "at zero it does not silence attention")
    with subject.scaled([k], -1.5):
        found.say(f"{stem}.k", not near(subject.output(path), plain, plain), "other keys change nothing")
    with subject.scaled(query, 0.0):
        blind = subject.output(path)
        found.say(f"{stem}.q", not near(blind, silence, plain), "at zero it silences attention, as v does")
        with subject.scaled([k], -1.5):
            found.say(f"{stem}.q", near(subject.output(path), blind, plain), "at zero, keys still decide")
    if f"{stem}.q" in found.checked:
        _check_uniform(subject, found, f"{stem}.uniform", names)


def _check_uniform(subject: Subject, found: Findings, what: str, names: tuple[list[str], str, str, str]) -> None:
    """With `q` at zero what enters `o` is the mean of the value vectors that a word may see: those up to it, or all. Before it is not.

    Up to one factor a word, which is what sinks and gates at zero leave of it.
    """
    query, _, v, o = names
    beside = _beside(subject, o)
    with subject.scaled(beside, 0.0):
        before = _reads_mean(subject, v, o)
        if before is None:
            found.left[what] = "the values, or what o reads, are not one linear layer's"
            return
        found.say(what, not before, "o reads the mean of the values whatever q is")
        with subject.scaled(query, 0.0):
            holds = _reads_mean(subject, v, o) or (subject.run == subject.on_words and _averages(subject, subject.owner(o)))
            found.say(what, bool(holds), "with q at zero, o does not read the mean of the values")


def _reads_mean(subject: Subject, v: str, o: str) -> bool | None:
    """Whether what enters `o` is the mean of all values at every word, or of those up to it; None where that cannot be seen."""
    entering = subject.inputs(subject.owner(v), subject.owner(o))
    made = _product(subject, v, entering[0]) if entering else None
    if entering is None or made is None:
        return None
    values, mixed = made.flatten(0, -2), entering[1].flatten(0, -2)
    count = len(values)
    running = values.cumsum(0) / torch.arange(1, count + 1)[:, None]
    means = [values.mean(0, keepdim=True).expand(len(mixed), -1)] + ([running] if len(mixed) == count else [])
    return any(_along(mixed, heads) for mean in means for heads in _repeated(mean, mixed.shape[-1]))


def _beside(subject: Subject, name: str) -> list[str]:
    """The components of `BESIDE` in the same attention as `name`."""
    stem = name.rpartition(".")[0]
    return [f"{stem}.{role}" for role in BESIDE if f"{stem}.{role}" in subject.components]


def _along(mixed: Tensor, mean: Tensor) -> bool:
    factor = (mixed * mean).sum(-1, keepdim=True) / mean.square().sum(-1, keepdim=True)
    return bool((factor > 0.1).all()) and near(mixed, factor * mean, mixed)


def _product(subject: Subject, name: str, source: Tensor) -> Tensor | None:
    """What the component alone makes of the input of its module."""
    weight: Tensor | None = None
    bias: Tensor | float = 0.0
    transposed = type(subject.net.get_submodule(subject.owner(name))).__name__ == "Conv1D"
    for one in subject.components[name]:
        if one.parameter.rpartition(".")[0] != subject.owner(name):
            continue
        parts = subject.views(one)
        if parts[0].dim() == 1:
            bias = torch.cat(parts)
        elif parts[0].dim() == 2:
            weight = torch.cat(parts, 1).T if transposed else torch.cat(parts)
    if weight is None or weight.shape[1] != source.shape[-1]:
        return None
    return source @ weight.T + bias


def _repeated(values: Tensor, width: int) -> list[Tensor]:
    """The value vectors as wide as `o` reads them, each head repeated for the queries that share it, for every possible size of a head."""
    own = values.shape[-1]
    if width == own:
        return [values]
    sizes = [size for size in range(1, own + 1) if own % size == 0] if width % own == 0 else []
    return [values.unflatten(-1, (own // size, size)).repeat_interleave(width // own, -2).flatten(-2) for size in sizes]


def check_low_rank(subject: Subject, found: Findings, part: tuple[str, str]) -> None:
    """`kv_b`, `kv_a` or `o` at zero silences attention; with `q_b` at zero a token averages what every token gives alone."""
    tower, label = part
    for values, o in ((("kv_a", "kv_b"), "o"), (("kv", "o_a"), "o_b")):
        place = subject.layer(tower, *(f"attn.{role}" for role in (*values, o)))
        if place is not None:
            with subject.scaled([f"{place}.attn.{o}"], 0.0, biases=True):
                _check_low_rank(subject, found, (f"{label}attn", place), (*values, o))


def _check_low_rank(subject: Subject, found: Findings, where: tuple[str, str], roles: tuple[str, ...]) -> None:
    stem, place = where
    last = next((role for role in ("q_b", "q", "q_a") if f"{place}.attn.{role}" in subject.components), None)
    path = subject.owner(f"{place}.attn.{roles[-1]}")
    plain = subject.output(path)
    for role in roles:
        with subject.scaled([f"{place}.attn.{role}"], 0.0):
            holds = near(subject.output(path), torch.zeros_like(plain), plain)
            found.say(f"{stem}.{role}", holds, "at zero it does not silence attention")
    if last is None:
        found.left[f"{stem}.q"] = "no query projection has a name of its own"
        return
    with subject.scaled([f"{place}.attn.{last}"], 0.0):
        blind = subject.output(path)
        found.say(f"{stem}.{last}", not near(blind, plain, plain), "at zero it changes nothing")
        if place.endswith(".0"):
            with subject.scaled(_beside(subject, f"{place}.attn.{last}"), 0.0):
                holds = _averages(subject, path)
            found.say(f"{stem}.uniform", holds, "with the queries at zero, o does not read the mean of what each token gives alone")
        else:
            found.left[f"{stem}.uniform"] = "other layers come before the first low-rank attention"
    if f"{place}.attn.q_a" in subject.components and last != "q_a":
        with subject.scaled([f"{place}.attn.q_a"], 0.0):
            found.say(f"{stem}.q_a", near(subject.output(path), blind, plain), "at zero it does not do what q_b at zero does")


def _averages(subject: Subject, path: str) -> bool:
    """Whether what enters the module at `path` is, at every word, the mean of what each word up to it gives when it is alone.

    Holds in a first layer alone, where a word's values do not depend on others, and where positions turn queries and keys only.
    """
    mixed = _entering(subject, path)
    alone = []
    for index in range(WORDS.shape[1]):
        words = WORDS[:, index : index + 1]
        run, subject.run = subject.run, lambda net, _words, words=words, run=subject.run: run(net, words)
        try:
            alone.append(_entering(subject, path))
        finally:
            subject.run = run
    values = torch.cat([one.flatten(0, -2) for one in alone])
    mixed = mixed.flatten(0, -2)
    return len(values) == len(mixed) and _along(mixed, values.cumsum(0))


def _entering(subject: Subject, path: str) -> Tensor:
    entering = subject.inputs(path)
    assert entering is not None, f"{path} is never called"
    return entering[0]


def check_experts(subject: Subject, found: Findings, part: tuple[str, str]) -> None:
    """`up` doubles what the experts give and `gate` does not, all of them and each alone; a router acts through experts only."""
    tower, label = part
    layers = {index: [name for name in names if ".moe.experts." in name] for index, names in subject.layers(tower).items()}
    place = next((f"{tower}.{index}" for index, names in layers.items() if names), None)
    if place is None:
        return
    stem = f"{label}moe"
    names = layers[int(place.rpartition(".")[2])]
    roles: dict[str, list[str]] = {}
    for name in names:
        roles.setdefault(name.rpartition(".")[2], []).append(name)
    if "down" not in roles or "up" not in roles:
        found.left[f"{stem}.experts"] = f"experts hold {', '.join(sorted(roles))}"
        return
    path = subject.around(roles["down"])
    with subject.scaled(roles["down"], 0.0, biases=True):
        with subject.scaled(roles["down"], 0.0):
            silence = subject.output(path, once=True)
        plain = subject.output(path, once=True) - silence
        found.say(f"{stem}.experts.down", bool(plain.norm() > 0), "at zero it changes nothing")
        _check_expert_gates(subject, found, (f"{stem}.experts", path), roles, (plain, silence))
        _check_each_expert(subject, found, (f"{stem}.experts", path), roles, (plain, silence))
    router = f"{place}.moe.router"
    if router not in subject.components:
        return
    with subject.scaled([router], -1.5):
        found.say(f"{stem}.router", not near(subject.output(path, once=True) - silence, plain, plain), "another router changes nothing")
        with subject.scaled(roles["down"], 0.0):
            found.say(f"{stem}.router", torch.equal(subject.output(path, once=True), silence), "it acts where no expert does")


def _check_expert_gates(
    subject: Subject, found: Findings, where: tuple[str, str], roles: dict[str, list[str]], values: tuple[Tensor, Tensor]
) -> None:
    (stem, path), (plain, silence) = where, values
    if "gate" not in roles:
        with subject.scaled(roles["up"], 2.0):
            found.say(f"{stem}.up", not near(subject.output(path, once=True) - silence, plain, plain), "twice its values change nothing")
        return
    with subject.scaled(roles["up"], 2.0):
        found.say(
            f"{stem}.up", near(subject.output(path, once=True) - silence, 2 * plain, plain), "twice its values do not double the experts"
        )
    with subject.scaled(roles["gate"], 2.0):
        found.say(
            f"{stem}.gate",
            not near(subject.output(path, once=True) - silence, 2 * plain, plain),
            "twice its values double the experts, as up's do",
        )
    with subject.scaled(roles["gate"], 0.0):
        found.say(f"{stem}.gate", near(subject.output(path, once=True), silence, plain), "at zero it does not silence the experts")


def _check_each_expert(
    subject: Subject, found: Findings, where: tuple[str, str], roles: dict[str, list[str]], values: tuple[Tensor, Tensor]
) -> None:
    """What is lost without one expert's `down` is lost without its `gate`, and doubles with its `up`; all that is lost is the whole."""
    (stem, path), (plain, silence) = where, values
    total = torch.zeros_like(plain)
    for down in roles["down"]:
        with subject.scaled([down], 0.0):
            without = subject.output(path, once=True)
        lost = plain + silence - without
        total += lost
        gate, up = (f"{down.removesuffix('down')}{role}" for role in ("gate", "up"))
        if f"{stem}.gate" in found.checked:
            with subject.scaled([gate], 0.0):
                holds = near(subject.output(path, once=True), without, plain)
                found.say(f"{stem}.gate", holds, "at zero one expert's gate does not silence that expert")
        if f"{stem}.gate" in found.checked and f"{stem}.up" in found.checked:
            with subject.scaled([up], 2.0):
                holds = near(subject.output(path, once=True) - silence, plain + lost, plain)
                found.say(f"{stem}.up", holds, "twice its values do not double one expert")
    found.say(f"{stem}.down", near(total, plain, plain), "the experts do not add up to the whole")


def check_layers(subject: Subject, found: Findings, part: tuple[str, str]) -> None:
    """Changing the last layer leaves what enters it bit-identical, and changes what the model gives."""
    tower, label = part
    layers = subject.layers(tower)
    if not layers:
        return
    last = max(layers)
    what = f"{label}layers"
    if last == 0:
        if what not in found.checked:
            found.left[what] = "fewer than two layers"
        return
    module = subject.around(layers[last])
    if module.rpartition(".")[0].rpartition(".")[2].isdigit() and subject.inputs(module) is None:
        module = module.rpartition(".")[0]  # a list of the layer's parts, such as T5's
    before, given = subject.inputs(module), subject.logits()
    with subject.scaled(layers[last], 1.5):
        after, changed = subject.inputs(module), subject.logits()
    if before is None or after is None:
        found.left[what] = "a layer is no module of its own"
        return
    found.say(what, torch.equal(before[0], after[0]), f"layer {last} changes what enters it")
    found.say(what, not torch.equal(given, changed), f"layer {last} changes nothing")


def check_mixing(subject: Subject, found: Findings) -> None:
    """With everything called attention or mixer at zero, no word reaches another's place; without, the first reaches the last."""
    mixing = [name for name in subject.components if name.startswith("language.") and {"attn", "cross", "mixer"} & set(name.split("."))]
    if not mixing:
        return
    other = WORDS.clone()
    other[0, 0] = 12
    # Experts sort the words among them, so that another word changes how others are rounded.
    found.say("mixing", _moved(subject, other) > 1e-3, "the first word never reaches the last place")
    with subject.scaled(mixing, 0.0):
        found.say("mixing", _moved(subject, other) < 1e-5, "words reach each other without attention and mixers")


def _moved(subject: Subject, words: Tensor) -> float:
    """How far what the model gives at the last place differs for other words, as a share."""
    plain, other = subject.logits()[:, -1], subject.logits(words)[:, -1]
    given = plain.abs() < 1e30  # the rest are words that a model never says
    return float((other - plain)[given].norm() / plain[given].norm())


def roles_of(names: Sequence[str], *, beyond: bool = False) -> set[str]:
    """The roles that claims are made of among component names: `mlp.up`, `encoder.attn.q`, `moe.experts.down`.

    Those of layers that are not looked at are among them only with `beyond`.
    """
    claims = {"mlp.gate", "mlp.up", "mlp.down", "moe.router"}
    claims |= {f"{stem}.{role}" for stem in ("attn", "cross") for role in "qkvo"}
    claims |= {f"attn.{role}" for role in ("q_a", "q_b", "kv_a", "kv_b", "kv", "o_a", "o_b")}
    claims |= {f"moe.{stem}.{role}" for stem in ("experts", "shared") for role in ("gate", "up", "down")}
    found = set()
    for name in names:
        tower, role = _split(name)
        if role in claims and (beyond or not tower.startswith(BYTES)):
            found.add(f"encoder.{role}" if tower == ENCODER else role)
    return found


def _split(name: str) -> tuple[str, str]:
    """The list of the text tower's layers that a component lies in, and its role without indices; both empty outside layers."""
    words = name.split(".")
    at = next((index for index, word in enumerate(words) if word.isdigit()), 0)
    if words[0] != "language" or not at:
        return "", ""
    return ".".join(words[:at]), ".".join(word for word in words[at:] if not word.isdigit())
