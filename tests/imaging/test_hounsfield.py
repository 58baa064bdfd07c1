"""Hounsfield units: one table of what is air, what stands outside and what is clipped."""

import ast
from pathlib import Path

import numpy as np

import ctmr
from ctmr.imaging.hounsfield import AIR_HU, CLIP_HU, DRAWN_OUTSIDE, OUTSIDE_VALUE, SCANNER_RANGE_HU, SKIN_HU
from ctmr.imaging.volume import Unit

WATER_HU = 0.0


def negative_numbers(file: Path) -> set[float]:
    """Return the absolute values of the negative numbers that a module's code writes out."""
    nodes = ast.walk(ast.parse(file.read_text()))
    minus = (n.operand for n in nodes if isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.USub))
    return {n.value for n in minus if isinstance(n, ast.Constant)}


def test_what_stands_outside_fits_the_storage_type_of_its_unit() -> None:
    assert OUTSIDE_VALUE == {Unit.HU: -1024.0, Unit.ARBITRARY: 0.0, Unit.GREY8: 0.0}
    assert np.int16(OUTSIDE_VALUE[Unit.HU]) == -1024


def test_a_baseline_draws_air_where_the_grid_holds_nothing() -> None:
    assert {Unit.HU: -1000.0, Unit.ARBITRARY: 0.0, Unit.GREY8: 0.0} == DRAWN_OUTSIDE


def test_the_skin_is_half_way_between_air_and_water() -> None:
    assert (AIR_HU + WATER_HU) / 2 == SKIN_HU


def test_twelve_bits_hold_the_scanners_range() -> None:
    assert SCANNER_RANGE_HU[1] - SCANNER_RANGE_HU[0] == 2**12 - 1
    assert SCANNER_RANGE_HU[0] == CLIP_HU[0] and CLIP_HU[1] - CLIP_HU[0] == 4024


def test_air_is_written_out_in_one_module_only() -> None:
    root = Path(ctmr.__file__).parent
    found = {f.relative_to(root).as_posix() for f in root.rglob("*.py") if negative_numbers(f) & {500, 1000, 1024}}
    assert found == {"imaging/hounsfield.py"}
