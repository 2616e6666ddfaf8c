"""Tables in blocks of rows: exact lookups, and updates that are found again on disk."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from apt_jax.vgpu.memory.tiers import TieredTable, TierError, create_vgpu_stack

V, D, BLOCK = 101, 8, 10


def stack_of(blocks: int, path):
    levels = [
        {"tier": "device", "capacity_mb": blocks * BLOCK * D * 4 / 2**20},
        {"tier": "disk", "capacity_mb": 1, "path": path},
    ]
    return create_vgpu_stack(levels)


def rows(dtype=np.float32):
    return np.random.default_rng(0).normal(size=(V, D)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.uint8])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 7), (0,), (200,)])
def test_lookups_are_exact(dtype, shape, tmp_path):
    ids = np.random.default_rng(1).integers(0, V, shape)
    with stack_of(2, tmp_path) as stack:
        table = TieredTable.from_rows(stack, "embedding", rows(dtype), block_rows=BLOCK)
        found = table.lookup(ids)
        assert found.shape == (*shape, D) and found.dtype == dtype
        assert np.array_equal(np.asarray(found), rows(dtype)[ids])


def test_updates_reach_the_disk_and_come_back(tmp_path):
    rng, expected = np.random.default_rng(2), rows()
    with stack_of(2, tmp_path) as stack:
        table = TieredTable.from_rows(stack, "embedding", rows(), block_rows=BLOCK)
        for _ in range(30):
            ids = rng.integers(0, V, (2, 6))
            new = rng.normal(size=(2, 6, D)).astype(np.float32)
            if rng.integers(2):
                table.update(ids, new)
                for number, row in zip(ids.reshape(-1), new.reshape(-1, D), strict=True):
                    expected[number] = row
            else:
                table.add(ids, jnp.asarray(new))
                np.add.at(expected, ids, new)
            probe = rng.integers(0, V, 9)
            np.testing.assert_allclose(table.lookup(probe), expected[probe], atol=1e-5)
        np.testing.assert_allclose(np.concatenate([np.asarray(b) for b in table.blocks()]), expected, atol=1e-5)
        figures = stack.statistics()
    assert figures.levels[0].peak <= figures.levels[0].capacity
    assert figures.levels[1].bytes_in > V * D * 4  # blocks were written back
    assert figures.demotions > 20


def test_level_0_is_a_cache_of_the_blocks_in_use(tmp_path):
    with stack_of(3, tmp_path) as stack:
        table = TieredTable.from_rows(stack, "t", rows(), block_rows=BLOCK)
        table.lookup([5, 15, 25])
        stack.reset_statistics()
        for _ in range(10):
            table.lookup([25, 7, 12, 1])
        assert stack.statistics().requests == 30 and stack.statistics().l0_hit_rate == 1


def test_trees_of_rows_and_tables_made_block_by_block(tmp_path):
    def adapters(first, end):
        numbers = np.arange(first, end, dtype=np.float32)
        return {"a": np.tile(numbers[:, None, None], (1, 2, 3)), "b": numbers}

    with stack_of(4, tmp_path) as stack:
        table = TieredTable(stack, "adapters", 10, 1, adapters)
        found = table.lookup([[7, 3]])
        assert found["a"].shape == (1, 2, 2, 3) and found["b"].tolist() == [[7, 3]]
        table.add([3], jax.tree.map(lambda leaf: leaf * 0 + 1, table.lookup([3])))
        assert table.lookup([3])["b"].tolist() == [4] and table.lookup([3])["a"][0, 1, 2] == 4


def test_lookups_of_many_lengths_compile_few_programs(tmp_path):
    from apt_jax.vgpu.memory.tiers import table as module

    with stack_of(1, tmp_path) as stack:
        table = TieredTable.from_rows(stack, "t", rows(), block_rows=V)
        before = module._take._cache_size()
        for rows_of_one_block in range(1, 33):
            ids = np.concatenate([np.zeros(rows_of_one_block), np.arange(1, 65 - rows_of_one_block)]).astype(int)
            table.lookup(ids[:64])
        assert module._take._cache_size() - before <= 6


def test_wrong_numbers_are_one_line(tmp_path):
    with stack_of(2, tmp_path) as stack:
        table = TieredTable.from_rows(stack, "t", rows(), block_rows=BLOCK)
        for ids, words in (
            ([V], "no row 101; rows are 0 to 100"),
            ([-1], "no row -1"),
            ([0.5], "integers, not float64"),
        ):
            with pytest.raises(TierError, match=words):
                table.lookup(ids)
        with pytest.raises(TierError, match="both must be at least 1"):
            TieredTable.from_rows(stack, "t", rows(), block_rows=0)
        with pytest.raises(TierError, match=r"block 0 has \[3\] rows"):
            TieredTable(stack, "u", 10, 5, lambda first, end: np.zeros((3, 2), np.float32))


def test_rows_of_a_wrong_shape_leave_no_block_pinned(tmp_path):
    with stack_of(2, tmp_path) as stack:
        table = TieredTable.from_rows(stack, "embedding", rows(), block_rows=BLOCK)
        with pytest.raises((TypeError, ValueError)):
            table.update([3], np.zeros((1, D + 1), np.float32))
        with pytest.raises(TierError, match="'embedding/0' is not pinned"):
            stack.unpin("embedding/0")
