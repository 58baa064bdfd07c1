"""The terminal: every number of the summary under its protocol, beside what never learned."""

from __future__ import annotations

import pytest

from ctmr.cli.console import Console


def summary(**metrics):
    return {
        "metrics": metrics,
        "protocols": {n: f"{n}: as measured" for n in metrics},
        "tissues": {},
        "warnings": [],
        "baselines": {"mean image": {"paired_volume_hu": {"mae": 245.04, "psnr": 22.6}}},
        "statement": "Passed.",
    }


def test_lesions_have_their_numbers_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Console().measurements(
        summary(
            lesions={"detection_rate": 0.75, "invented": 0.5, "false_findings": 272.0},
            paired_volume_hu={"mae": 80.0, "psnr": 27.0},
        )
    )
    said = capsys.readouterr().out
    lesions, paired = said.split("paired_volume_hu: as measured")
    assert "detection rate" in lesions and "0.750" in lesions and "272.0" in lesions and "mean image" not in lesions
    assert "27.00 dB" in paired and "245.0" in paired


def test_a_number_that_was_not_measured_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    Console().measurements(summary(paired_volume_hu={"mae": 80.0, "psnr": None}))
    assert "–" in capsys.readouterr().out


def test_a_name_is_shown_and_never_obeyed(capsys):
    Console().say("read \x1b[2J\x1b]0;evil\x07.nii.gz")
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and r"\x1b[2J" in out


def test_a_translation_tells_its_warnings(capsys):
    written = {"modality": "CT", "model": "m", "version": "1", "path": "o", "series_uid": "1.2"}
    Console().synthesized({**written, "warnings": ["trained on phantoms only: not for patients"]})
    assert "  warning: trained on phantoms only: not for patients" in capsys.readouterr().out
