"""Boxes: grids partition a tensor whatever its sizes, and a hole or an overlap is found and named."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.boxes import Box, Grid, cover_fault
from ckptstore.errors import InvalidInput
from ckptstore.plain_leaves import Content, Leaves, write_leaves
from ckptstore.shard_merging import RankDocuments, merge
from ckptstore.shards import Piece, read_index, read_plan_text, write_table, written_boxes

factors = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], Grid]:
    cut = draw(st.lists(factors, min_size=0, max_size=3).map(tuple))
    shape = tuple(draw(st.integers(0, 9)) for _ in cut)
    count = prod(prod(of_one) for of_one in cut)
    return shape, Grid(cut, tuple(draw(st.permutations(range(count)))))


@given(grids())
def test_the_cells_of_a_grid_are_the_tensor_each_element_once(made: tuple[tuple[int, ...], Grid]) -> None:
    shape, grid = made
    seen = np.zeros(shape, int)
    for rank, box in grid.cells(shape):
        seen[tuple(slice(start, stop) for start, stop in zip(box.offset, box.stops(), strict=True))] += 1
        assert grid.of_rank(rank, shape) == box
    assert (seen == 1).all()
    assert cover_fault(shape, list(grid.cells(shape))) is None or not prod(shape)


@given(grids(), st.data())
def test_the_cells_that_a_box_touches_are_found_without_the_others(made: tuple[tuple[int, ...], Grid], data: st.DataObject) -> None:
    shape, grid = made
    offset = tuple(data.draw(st.integers(0, size)) for size in shape)
    size = tuple(data.draw(st.integers(0, length - start)) for start, length in zip(offset, shape, strict=True))
    wanted = Box(offset, size)
    touched = {cell for cell in grid.cells(shape) if cell[1].common(wanted) is not None}
    assert {cell for cell in grid.cells(shape, wanted) if cell[1].common(wanted) is not None} == touched


@given(grids(), st.data())
def test_a_box_that_is_missing_or_there_twice_is_found(made: tuple[tuple[int, ...], Grid], data: st.DataObject) -> None:
    shape, grid = made
    cells = list(grid.cells(shape))
    if not cells:
        return
    victim = data.draw(st.sampled_from(cells))
    fault = cover_fault(shape, [cell for cell in cells if cell != victim])
    assert fault is not None and fault.startswith("no rank has")
    twice = cover_fault(shape, [*cells, (99, victim[1])])
    assert twice is not None and str(victim[1]) in twice and "both have" in twice


# --- merging --------------------------------------------------------------------------------------------------------


def merged(*plans: bytes, leaves: list[bytes] | None = None, world_size: int | None = None) -> bytes:
    leaves = leaves or [write_leaves(Leaves({}, {}))] * len(plans)
    documents = {str(text): text for text in (*plans, *leaves)}
    ranks = [RankDocuments(rank, str(plan), str(leaf)) for rank, (plan, leaf) in enumerate(zip(plans, leaves, strict=True))]
    tables = {str(plan): read_plan_text(plan) for plan in plans}
    return merge(ranks, world_size or len(plans), tables, documents)


def plan(name: str, shape: list[int], *pieces: Piece, expect: tuple[str, ...] = (), dtype: str = "F32") -> bytes:
    return write_table({name: [dtype, shape, written_boxes(pieces)]}, [], expect)


def rows(rank: int, start: int, stop: int) -> Piece:
    return Piece(rank, Box((start, 0), (stop - start, 4)), "w")


def test_plans_that_make_a_whole_become_one_index() -> None:
    index = read_index(merged(plan("w", [6, 4], rows(0, 0, 2)), plan("w", [6, 4], rows(1, 2, 6))))
    assert [(piece.rank, str(piece.box)) for piece in index.tensor("w").pieces()] == [(0, "[0:2, 0:4]"), (1, "[2:6, 0:4]")]
    assert index.world_size == 2


@pytest.mark.parametrize(
    ("plans", "told"),
    [
        ((plan("w", [6, 4], rows(0, 0, 2)), plan("w", [6, 4], rows(1, 3, 6))), r"'w': no rank has \[2:3, 0:4\] of it"),
        ((plan("w", [6, 4], rows(0, 0, 4)), plan("w", [6, 4], rows(1, 3, 6))), r"'w': ranks 0 and 1 both have \[3:4, 0:4\]"),
        ((plan("w", [6, 4], rows(0, 0, 3)), plan("w", [7, 4], rows(1, 3, 6))), "'w': one rank says that its shape"),
        ((plan("w", [6, 4], rows(0, 0, 3)), plan("w", [6, 4], rows(1, 3, 6), dtype="BF16")), "'w': one rank says that its dtype"),
        ((plan("w", [6, 4], rows(0, 0, 6)), plan("v", [2, 4], rows(1, 0, 3))), "'v': rank 1 has .* outside its shape"),
        ((plan("w", [6, 4], rows(0, 0, 6), expect=("experts/3",)),), "'experts/3': it is expected"),
        (
            (
                write_table({"w": ["F32", [4], 0]}, [Grid(((2,),), (0, 1))]),
                write_table({}, []),
            ),
            r"'w': rank 1 should have \[2:4\] of it",
        ),
    ],
)
def test_what_is_no_whole_is_refused_by_name(plans: tuple[bytes, ...], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        merged(*plans)


def test_a_rank_that_says_nothing_beside_others_is_refused() -> None:
    with pytest.raises(InvalidInput, match="rank 1 saved nothing of the whole"):
        merged(plan("w", [6, 4], rows(0, 0, 6)), world_size=2)


def test_a_rank_whose_cell_is_empty_need_not_speak() -> None:
    """Three ranks, a tensor of two rows: the third has nothing of it."""
    grid = write_table({"w": ["F32", [2], 0]}, [Grid(((3,),), (0, 1, 2))])
    assert len(list(read_index(merged(grid, grid, write_table({}, []))).tensor("w").pieces())) == 2


def test_plain_leaves_are_sorted_into_equal_and_differing() -> None:
    empty = write_table({}, [])
    leaves = [write_leaves(Leaves({"step": "int 3", "rng": f"int {rank}"}, {})) for rank in range(3)]
    index = read_index(merged(empty, empty, empty, leaves=leaves))
    assert index.per_rank == {"rng": [0, 1, 2]} and index.trees == [0]


def having(digest: str, *, left_out: bool = False) -> bytes:
    """Leaves of a rank with one plain tensor."""
    return write_leaves(Leaves({}, {"t": Content("F32", (4,), digest)}, frozenset({"t"} if left_out else ())))


def test_a_plain_tensor_is_looked_for_where_it_was_stored() -> None:
    empty = write_table({}, [])
    equal = read_index(merged(empty, empty, empty, leaves=[having("a", left_out=True), having("a"), having("a", left_out=True)]))
    assert [piece.rank for piece in equal.tensor("t").pieces()] == [1] and not equal.copies
    leaves = [having("a"), having("b"), having("a", left_out=True), having("b", left_out=True)]
    differing = read_index(merged(*[empty] * 4, leaves=leaves))
    assert differing.per_rank == {"t": [0, 1, 2, 3]}
    assert {rank: copies["t"][0] for rank, copies in differing.copies.items()} == {2: 0, 3: 1}


def test_a_plain_tensor_that_every_rank_left_to_another_is_refused_by_name() -> None:
    empty = write_table({}, [])
    with pytest.raises(InvalidInput, match="'t': rank 0 left it to another rank to store, and none did"):
        merged(empty, empty, leaves=[having("a", left_out=True), having("a", left_out=True)])


def test_the_index_of_ranks_that_are_alike_does_not_grow_with_ranks_times_tensors() -> None:
    tensors = {f"layer.{i}.weight": ["F32", [8192, 16], 0] for i in range(50)}
    sizes = {}
    for count in (64, 1024):
        text = write_table(tensors, [Grid(((count,), ()), tuple(range(count)))])
        sizes[count] = len(merged(*[text] * count))
    assert sizes[1024] < sizes[64] + 1024 * 8
