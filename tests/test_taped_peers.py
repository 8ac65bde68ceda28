"gradbook's tapes beside CppAD's and ADOL-C's, in one run."

from __future__ import annotations

import math
import os

import pytest

from gradbook.roads import native
from tests import taped_peers


@pytest.mark.skipif(not os.environ.get("FULL"), reason="long: make test FULL=1")
def test_no_slower_than_the_libraries_in_cpp() -> None:
    if not native.available():
        pytest.skip("no C compiler on this machine")
    if not taped_peers.programs():
        pytest.skip("neither CppAD (pip install cmeel-cppad) nor ADOL-C (libadolc-dev) is here")
    engines = taped_peers.compare(repeat=9)
    own = {row["case"]: row for row in engines.pop("gradbook")}
    for name, rows in engines.items():
        for row in rows:
            mine = own[row["case"]]
            if row["case"] != "Toon":  # its slopes lose digits in every engine
                assert math.isclose(row["first_slope"], mine["first_slope"], rel_tol=1e-11)
            assert math.isclose(row["sum_of_slopes"], mine["sum_of_slopes"], rel_tol=1e-2)
            assert mine["left"] <= row["left"], (name, row["case"])
            assert mine["forward_s"] <= row["forward_s"], (name, row["case"])
            assert mine["reverse_s"] <= row["reverse_s"], (name, row["case"])
    for mine in own.values():
        assert mine["reverse_s"] <= 3 * mine["forward_s"]
