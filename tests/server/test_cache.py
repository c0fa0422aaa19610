from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from metaspec_server.core.cache import ResultCache, computing_repeats_once, keys
from metaspec_server.core.tensors import Piece, Rows


def test_keys_are_the_bytes_of_all_tensors_of_a_row() -> None:
    bits = np.arange(12, dtype=np.uint8).reshape(3, 4)
    cotangent = np.ones((3, 2, 2), np.float32)
    assert keys({"structure": bits}) == [bytes(row) for row in bits]
    assert keys({"structure": bits, "cotangent": cotangent})[1] == bytes(bits[1]) + cotangent[1].tobytes()


def test_what_was_used_least_recently_makes_room() -> None:
    cache = ResultCache(3 * (600 + 1 + 400))
    for name in (b"a", b"b", b"c"):
        cache.put(1, [name], {"y": np.full((1, 100), ord(name), np.float32)})
    assert cache.get(1, [b"a"])[0] is not None
    cache.put(1, [b"d"], {"y": np.zeros((1, 100), np.float32)})
    found = cache.get(1, [b"a", b"b", b"c", b"d"])
    assert [row is not None for row in found] == [True, False, True, True]
    assert found[0] is not None
    assert (found[0]["y"] == ord("a")).all()
    assert cache.nbytes == 3 * 1001


def test_models_do_not_share_results() -> None:
    cache = ResultCache(10**6)
    cache.put(1, [b"a"], {"y": np.zeros((1, 1))})
    assert cache.get(2, [b"a"]) == [None]


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = ResultCache(1000)
    cache.put(1, [b"a"], {"y": np.zeros((1, 10**6))})
    assert cache.get(1, [b"a"]) == [None]


def test_kept_results_do_not_change_with_the_arrays_they_came_from() -> None:
    cache, results = ResultCache(10**6), {"y": np.zeros((1, 3))}
    cache.put(1, [b"a"], results)
    results["y"][:] = 9
    row = cache.get(1, [b"a"])[0]
    assert row is not None
    assert (row["y"] == 0).all()


@given(st.lists(st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.booleans()), min_size=1, max_size=6))
def test_repeats_are_computed_once_and_everybody_gets_them(requests: list[tuple[list[int], bool]]) -> None:
    computed: list[int] = []

    def run(pieces: Sequence[Rows]) -> Rows:
        batch = np.concatenate([piece["x"] for piece in pieces])
        computed.extend(batch[:, 0].tolist())
        return {"y": 2 * batch}

    pieces = []
    for values, keyed in requests:
        keys = [b"%d" % value for value in values] if keyed else None
        pieces.append(Piece({"x": np.array(values)[:, None]}, keys))
    results = computing_repeats_once(run)(pieces)["y"]
    assert results[:, 0].tolist() == [2 * value for values, _ in requests for value in values]
    repeatable = {value for values, keyed in requests if keyed for value in values}
    single = sum(len(values) for values, keyed in requests if not keyed)
    assert len(computed) == len(repeatable) + single
