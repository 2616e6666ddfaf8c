"""Device groups of a collective, and the mesh axes they run along."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from apt_jax.trainops.distributed.collectives.hlo import ProgramError

UNKNOWN = ("?",)
Groups = list[list[int]]

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[(.*?)\](?:,\s*device_ids=\((.*?\)?)\))?\s*\{(.*?)\}")


def parse_groups(text: str, num_devices: int) -> Groups:
    """Reads `replica_groups=` in any of XLA's forms.

    Args:
      text: `{{0,1},{2,3}}`; `{}` for one group of all; `[4,2]<=[2,4]T(1,0)`, an array of that many groups and
        members made by transposing a counted array; or `mesh['a'=2,'b'=4] {'b'}`, groups along axes of a
        mesh of XLA's own, `'b':(2)2` for the part of `'b'` of size 2 below a part of size 2.
      num_devices: in the program.

    Raises:
      ProgramError: another form.
    """
    if text.startswith("{"):
        groups = [[int(d) for d in re.findall(r"\d+", part)] for part in re.findall(r"\{([\d,\s]*)\}", text[1:-1])]
        return [group for group in groups if group] or [list(range(num_devices))]
    if iota := _IOTA.match(text):
        ids = _iota(iota)
        return ids.reshape(ids.shape[0], -1).tolist()
    if mesh := _MESH.match(text):
        return _mesh_groups(mesh)
    raise ProgramError(f"replica_groups {text[:60]}: unknown form; teach it to distributed/collectives/groups.py")


def parse_pairs(text: str) -> Groups:
    """Reads `source_target_pairs={{0,1},{1,0}}`."""
    return [[int(d) for d in re.findall(r"\d+", part)] for part in re.findall(r"\{([\d,\s]+)\}", text[1:-1])]


def _ints(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def _iota(form: re.Match[str]) -> np.ndarray:
    counted = np.arange(math.prod(_ints(form[2]))).reshape(_ints(form[2]))
    return (counted.transpose(_ints(form[3])) if form[3] else counted).reshape(_ints(form[1]))


def _mesh_groups(form: re.Match[str]) -> Groups:
    names, sizes = zip(*((n.strip("' "), int(s)) for n, s in (a.split("=") for a in form[1].split(","))), strict=True)
    ids = np.arange(math.prod(sizes))
    if form[2]:
        iota = _IOTA.match(f"[{len(ids)}]<={form[2]}")
        ids = _iota(iota) if iota else np.asarray(_ints(form[2]))
    # Each axis is cut where a group takes only a part of it.
    cuts: dict[str, set[int]] = {name: {1, size} for name, size in zip(names, sizes, strict=True)}
    taken: list[tuple[str, int, int]] = []
    for axis in form[3].split(","):
        name, _, part = axis.partition(":")
        name = name.strip("' ")
        before, size = map(int, re.findall(r"\d+", part)) if part else (1, sizes[names.index(name)])
        cuts[name] |= {before, before * size}
        taken.append((name, before, size))
    dims: list[int] = []
    moved: list[int] = []
    for name in names:
        edges = sorted(cuts[name])
        for low, high in itertools.pairwise(edges):
            if any(axis == name and before <= low and high <= before * size for axis, before, size in taken):
                moved.append(len(dims))
            dims.append(high // low)
    ids = np.moveaxis(ids.reshape(dims), moved, range(-len(moved), 0))
    return ids.reshape(-1, math.prod(dims[i] for i in moved)).tolist()


def group_axes(groups: Groups, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes that groups of devices span, in mesh order.

    Args:
      groups: positions in the row-major order of the mesh.
      mesh_shape: size by axis.

    Returns:
      The axes; () where every group is one device; `("?",)` where groups are not whole slices along axes.
    """
    axes = _differing(groups, mesh_shape)
    size = math.prod(mesh_shape[axis] for axis in axes)
    covered = sorted(device for group in groups for device in group)
    if any(len(group) != size for group in groups) or covered != list(range(math.prod(mesh_shape.values()))):
        return UNKNOWN
    return axes


def pair_axes(pairs: Groups, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which any sender and its receiver differ, in mesh order."""
    return _differing(pairs, mesh_shape)


def _differing(groups: Groups, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    sizes = tuple(mesh_shape.values())
    differ = np.zeros(len(sizes), bool)
    for group in groups:
        if max(group) >= math.prod(sizes):
            raise ProgramError(
                f"collective over device {max(group)}: the mesh {_show(mesh_shape)} has only {math.prod(sizes)}; "
                "give the shape of the mesh that the program was compiled for"
            )
        at = np.stack(np.unravel_index(group, sizes))
        differ |= (at != at[:, :1]).any(axis=1)
    return tuple(axis for axis, differs in zip(mesh_shape, differ, strict=True) if differs)


def _show(mesh_shape: Mapping[str, int]) -> str:
    return " × ".join(f"{axis} {size}" for axis, size in mesh_shape.items() if size > 1) or "of one device"


def raw(groups: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Groups as kept for a reader."""
    return tuple(map(tuple, groups))
