"""Converting takes memory for some pieces, whatever the size of the log; `bench/convert_memory.py` with a small log."""

import importlib.util
from pathlib import Path

SIZE, PIECE = 1.6e8, 2**20


def test_memory_does_not_grow_with_the_log(tmp_path):
    script = Path(__file__).parents[2] / "bench" / "convert_memory.py"
    spec = importlib.util.spec_from_file_location("convert_memory", script)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    found = bench.measure_all(tmp_path, SIZE, PIECE, ring=True)
    assert len(found) == 6
    for pair, one in found.items():
        assert one["peak"] - one["before"] < SIZE / 2, (pair, one)
