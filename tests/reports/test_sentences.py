"""Words: the sentences that stand on top of a report say what the numbers say, and no more."""

import pytest

from ctmr.imaging.volume import Direction, Unit
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import protocol
from ctmr.metrics.stats import summarise
from ctmr.reports.html import LesionRow, LesionTable
from ctmr.reports.sentences import fidelity_words, lesion_words, robustness_words, uncertainty_words


def summary(mae, name="paired_volume_hu", patients="abc"):
    cases = [CaseMetrics(s, s, protocol(name), {"mae": mae + k}) for k, s in enumerate(patients)]
    return {name: summarise(cases)}


def table(kept, invented=0.0, false=None):
    rows = [LesionRow("a", "tumour", 5.0, 9.0, 10.0, 7.0, k) for k in kept]
    lesions = summarise([CaseMetrics("a", "a", protocol("lesions"), {"invented": invented})])
    return LesionTable(Direction.MR2CT, "inserted", Unit.HU, rows, 0.3, 0.9, invented, false, lesions)


def test_fidelity_is_said_with_its_protocol_and_beside_the_best_that_never_learned():
    others = {"mean image": summary(200.0), "histogram matching": summary(400.0)}
    said = " ".join(fidelity_words(summary(100.0), others, Direction.MR2CT, phantom=False))
    assert "differs from the true one by 101.0 HU on average (3 patients" in said and "paired_volume_hu" in said
    assert "less than the best translator that never learned: mean image, 201.0 HU" in said
    assert "3 patients are few" in said
    worse = " ".join(fidelity_words(summary(300.0), others, Direction.MR2CT, phantom=True))
    assert "That is no less than" in worse and "phantom heads" in worse


def test_without_truth_nothing_is_said_about_fidelity():
    said = fidelity_words(summary(0.1, "cycle_slice"), {}, Direction.CT2MR, phantom=False)
    assert said == [
        "No image was compared with a true one of the same patient, so nothing here says that a synthetic image shows "
        "this patient's anatomy."
    ]


def test_lesions_are_counted_with_their_interval_and_with_what_was_invented():
    said = lesion_words(table([True, True, False], 0.5, 12.4))
    assert "Of 3 lesions put into the inputs the synthetic CT shows 2 (67 %, 95 % interval 30 % to 90 %)" in said
    assert "invents 0.5 an image" in said and "shows 12 blobs an image that the truth does not" in said
    assert "invents none" in lesion_words(table([True]))
    assert lesion_words(table([])) == "No lesion could be asked of the synthetic CT."


def test_the_worst_disturbance_is_named_with_how_much_worse_it_makes_things():
    curves = [("noise", (100.0, 110.0)), ("spacing", (100.0, 150.0))]
    said = robustness_words(curves, "MAE")
    assert "spacing hurts most" in said and "grows by 50 %" in said
    assert "No disturbance" in robustness_words([("noise", (100.0, 99.0))], "MAE")
    assert "changes the translations most" in robustness_words([("noise", (0.0, 9.0))], "change")


@pytest.mark.parametrize(("value", "verb"), [(0.7, "tells well"), (0.4, "tells in part"), (0.1, "hardly tells")])
def test_the_strength_of_a_correlation_has_a_word(value, verb):
    assert f"Uncertainty (both) {verb}" in uncertainty_words({"both": value, "cycle error": -0.2})
