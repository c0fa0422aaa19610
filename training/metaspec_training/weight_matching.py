"""Which weight of another implementation is which of a network here: by name, by a map, or by order and shape.

Guesses compare whole parts. A part is whatever shares a prefix of its names, from the whole network to one layer; its contents
are the shapes of its layers. A part whose contents, in order, occur once on both sides is the same part, and so are its layers,
one by one. Parts with partners in each other are the same part, too, and so are those whose contents occur once in whatever
order: in these, layers of one shape are taken in the order of their registration. The whole network is no such part: what is
alike in different corners of it is not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

Shape: TypeAlias = tuple[int, ...]
How: TypeAlias = Literal["name", "map", "guess", "order", "left out", ""]


@dataclass(frozen=True)
class Match:
    """A weight of one side or both.

    Attributes:
        ours: name in the network here, None if it has no place for the other weight.
        theirs: name in the other implementation, None if that has no such weight.
        how: by what they were matched: their name, a map, a guess by structure and shape, a guess by order alone; "left out"
            if the map says so; "" for a weight without a partner.
    """

    ours: str | None
    theirs: str | None
    how: How


@dataclass(frozen=True)
class _Layer:
    """Weights that share a prefix.

    Attributes:
        path: that prefix, or the name of a weight that stands alone.
        weights: names and shapes, sorted by the last part of the name.
    """

    path: str
    weights: tuple[tuple[str, Shape], ...]

    def contents(self, lenient: bool) -> Hashable:
        """What layers of the same kind have in common: last parts of names, unless there is only one, and shapes."""
        shapes = [(name.rpartition(".")[2], _essential(shape) if lenient else shape) for name, shape in self.weights]
        return shapes[0][1] if len(shapes) == 1 else tuple(shapes)


_Layers: TypeAlias = tuple[_Layer, ...]
_Pair: TypeAlias = tuple[_Layer, _Layer, How]


def match_weights(
    ours: Mapping[str, Shape], theirs: Mapping[str, Shape], given: Mapping[str, str | None] | None = None
) -> list[Match]:
    """Match the weights of two implementations, each in the order of its state dict.

    Args:
        ours: shapes of the weights of the network here, by name.
        theirs: shapes of those of the other implementation.
        given: names of theirs, or prefixes that end before a dot, to names or prefixes of ours; None leaves a weight out. It
            comes before equal names.

    Returns:
        A match for each weight of ours in order, then those of theirs that have no partner.

    Raises:
        ValueError: the map names a weight that does not exist, or one twice, or weights of other shapes.
    """
    found = _mapped(ours, theirs, given or {})
    taken = {match.ours for match in found.values()}
    for name in theirs:
        if name not in found and name in ours and name not in taken and fits(ours[name], theirs[name]):
            found[name] = Match(name, name, "name")
    taken = {match.ours for match in found.values()}
    for match in _guessed(
        _layers({name: shape for name, shape in ours.items() if name not in taken}),
        _layers({name: shape for name, shape in theirs.items() if name not in found}),
        whole=not found,
    ):
        assert match.theirs is not None
        found[match.theirs] = match
    partners = {match.ours: match for match in found.values()}
    return [
        *(partners.get(name, Match(name, None, "")) for name in ours),
        *(match for match in found.values() if match.ours is None),
        *(Match(None, name, "") for name in theirs if name not in found),
    ]


def fits(ours: Shape, theirs: Shape) -> bool:
    """Whether shapes are equal up to axes of length 1, and up to a 2 x 2 block of detectors in the place of four in a row."""
    return _essential(ours) == _essential(theirs)


def _essential(shape: Shape) -> Shape:
    shape = tuple(size for size in shape if size != 1)
    return (4, *shape[2:]) if shape[:2] == (2, 2) else shape


def _mapped(
    ours: Mapping[str, Shape], theirs: Mapping[str, Shape], given: Mapping[str, str | None]
) -> dict[str, Match]:
    """Matches by the map, by their name; the longest prefix counts."""
    found: dict[str, Match] = {}
    taken: dict[str, str] = {}
    for source, target in sorted(given.items(), key=lambda item: -len(item[0])):
        names = [name for name in theirs if name == source or name.startswith(f"{source}.")]
        if not names:
            raise ValueError(f"the map names {source}, but there is no such weight")
        for name in names:
            if name in found:
                continue
            if target is None:
                found[name] = Match(None, name, "left out")
                continue
            mine = target + name.removeprefix(source)
            if mine not in ours:
                raise ValueError(f"the map takes {name} to {mine}, but the network has no such weight")
            if mine in taken:
                raise ValueError(f"the map takes both {taken[mine]} and {name} to {mine}")
            if not fits(ours[mine], theirs[name]):
                raise ValueError(f"the map takes {name}, {theirs[name]}, to {mine}, which is {ours[mine]}")
            found[name], taken[mine] = Match(mine, name, "map"), name
    return found


def _layers(weights: Mapping[str, Shape]) -> _Layers:
    """Weights by layer: those that differ in their last name only; at the top, each weight stands alone."""
    layers: dict[str, list[tuple[str, Shape]]] = {}
    for name, shape in weights.items():
        layers.setdefault(name.rpartition(".")[0] or name, []).append((name, shape))
    return tuple(_Layer(path, tuple(sorted(found))) for path, found in layers.items())


def _guessed(ours: _Layers, theirs: _Layers, whole: bool) -> list[Match]:
    """Partners of layers.

    Args:
        ours: layers of the network here.
        theirs: layers of the other one.
        whole: whether these are all, so that two networks of the same layers in the same order are the same.
    """
    pairs: list[_Pair] = []
    if whole and any(_contents(ours, lenient) == _contents(theirs, lenient) for lenient in (False, True)):
        pairs, ours = _paired(ours, theirs), ()
    while found := _same_part(ours, theirs) or _in_linked_parts(pairs, ours, theirs) or _same_layers(ours, theirs):
        pairs += found
        ours = tuple(layer for layer in ours if layer not in {mine for mine, _, _ in found})
        theirs = tuple(layer for layer in theirs if layer not in {other for _, other, _ in found})
    return [
        Match(name, partner, how)
        for mine, other, how in pairs
        for (name, _), (partner, _) in zip(mine.weights, other.weights, strict=True)
    ]


def _same_part(ours: _Layers, theirs: _Layers) -> list[_Pair]:
    """The layers of the largest part that occurs once on both sides, with its layers in the same order."""
    for lenient in (False, True):
        common = _common_parts(_inner(ours), _inner(theirs), partial(_contents, lenient=lenient))
        if common:
            return _paired(*max(common, key=lambda parts: len(parts[0])))
    return []


def _same_layers(ours: _Layers, theirs: _Layers) -> list[_Pair]:
    """The layers of the smallest part that occurs once on both sides, with its layers in any order."""
    for lenient in (False, True):
        common = _common_parts(_inner(ours), _inner(theirs), partial(_unordered_contents, lenient=lenient))
        if common:
            return _paired(*min(common, key=lambda parts: len(parts[0])))
    return []


def _in_linked_parts(pairs: Sequence[_Pair], ours: _Layers, theirs: _Layers) -> list[_Pair]:
    """Layers of two parts that are one part, for some of their layers already have partners in each other."""
    mine, others = _parts(ours), _parts(theirs)
    links = {(_nearest(layer.path, mine), _nearest(partner.path, others)) for layer, partner, _ in pairs}
    links = {(here, there) for here, there in links if here and there}
    for here, there in sorted(links, key=lambda link: (len(mine[link[0]]), link)):  # the smallest ones first
        alone = sum(here == one for one, _ in links) == sum(there == other for _, other in links) == 1
        if alone and (found := _paired(mine[here], others[there])):
            return found
    return []


def _inner(layers: _Layers) -> list[_Layers]:
    """All parts but the whole, in which what is alike may be in different corners."""
    return [part for prefix, part in _parts(layers).items() if prefix]


def _nearest(path: str, parts: Mapping[str, _Layers]) -> str:
    """The smallest part around a layer that still has layers; "" if that is the whole network."""
    while path and path not in parts:
        path = path.rpartition(".")[0]
    return path


def _paired(ours: _Layers, theirs: _Layers) -> list[_Pair]:
    """Partners among the layers of one part: all of them in order, else those that are equal, as many on both sides."""
    for lenient in (False, True):
        if _contents(ours, lenient) == _contents(theirs, lenient):
            return [(mine, other, "guess") for mine, other in zip(ours, theirs, strict=True)]
        kinds = _by_contents(theirs, lenient)
        found: list[_Pair] = []
        for contents, alike in _by_contents(ours, lenient).items():
            partners = kinds.get(contents, [])
            if len(partners) == len(alike):
                how: How = "guess" if len(alike) == 1 else "order"
                found += [(mine, other, how) for mine, other in zip(alike, partners, strict=True)]
        if found:
            return found
    return []


def _common_parts(
    ours: Iterable[_Layers], theirs: Iterable[_Layers], contents: Callable[[_Layers], Hashable]
) -> list[tuple[_Layers, _Layers]]:
    """Parts of both sides whose contents are equal and occur once on each."""
    mine, others = _unique_parts(ours, contents), _unique_parts(theirs, contents)
    return [(part, others[key]) for key, part in mine.items() if key in others]


def _unique_parts(parts: Iterable[_Layers], contents: Callable[[_Layers], Hashable]) -> dict[Hashable, _Layers]:
    found: dict[Hashable, set[_Layers]] = {}
    for part in parts:
        found.setdefault(contents(part), set()).add(part)
    return {key: next(iter(same)) for key, same in found.items() if len(same) == 1}


def _parts(layers: _Layers) -> dict[str, _Layers]:
    """Layers by each prefix of their names, from "" for all of them to their own name."""
    parts: dict[str, list[_Layer]] = {}
    for layer in layers:
        names = layer.path.split(".")
        for depth in range(len(names) + 1):
            parts.setdefault(".".join(names[:depth]), []).append(layer)
    return {prefix: tuple(part) for prefix, part in parts.items()}


def _contents(part: _Layers, lenient: bool) -> Hashable:
    return tuple(layer.contents(lenient) for layer in part)


def _unordered_contents(part: _Layers, lenient: bool) -> Hashable:
    return frozenset((contents, len(layers)) for contents, layers in _by_contents(part, lenient).items())


def _by_contents(part: _Layers, lenient: bool) -> dict[Hashable, list[_Layer]]:
    layers: dict[Hashable, list[_Layer]] = {}
    for layer in part:
        layers.setdefault(layer.contents(lenient), []).append(layer)
    return layers
