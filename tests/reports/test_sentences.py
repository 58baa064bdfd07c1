"""Words: the sentences that stand on top of a report say what the numbers say, and no more."""

import pytest
from evaluated import lesion_test
from scipy.stats import binomtest

from ctmr.evaluation.robustness import Curve, RobustnessResult
from ctmr.evaluation.uncertainty import Measure
from ctmr.imaging.volume import Direction, Unit
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import protocol
from ctmr.metrics.stats import summarise
from ctmr.reports.sentences import fidelity_words, lesion_words, robustness_words, uncertainty_words


def summary(mae, name="paired_volume_hu", patients="abc"):
    cases = [CaseMetrics(s, s, protocol(name), {"mae": mae + k}) for k, s in enumerate(patients)]
    return {name: summarise(cases)}


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
    counts = [{"invented": 0.0, "false_findings": 12.0}, {"invented": 1.0, "false_findings": 12.8}]
    said = lesion_words(lesion_test([True, True, False], counts))
    low, high = binomtest(2, 3).proportion_ci(method="wilson")
    assert f"synthetic CT shows 2 (67 %, 95 % interval {100 * low:.0f} % to {100 * high:.0f} %)" in said
    assert "Of 3 lesions put into the inputs" in said
    assert "invents 0.5 an image" in said and "shows 12 blobs an image that the truth does not" in said
    assert "invents none" in lesion_words(lesion_test([True], [{"invented": 0.0}]))
    assert lesion_words(lesion_test([])) == "No lesion could be asked of the synthetic CT."


def sweep(metric="MAE", **means):
    curves = tuple(Curve(name, "", (0.0, 1.0), values, values, values) for name, values in means.items())
    return RobustnessResult(metric, Unit.HU, 1, curves)


def test_the_worst_disturbance_is_named_with_how_much_worse_it_makes_things():
    said = robustness_words(sweep(noise=(100.0, 110.0), spacing=(100.0, 150.0)))
    assert "spacing hurts most" in said and "the MAE grows by 50 %" in said
    assert "No disturbance" in robustness_words(sweep(noise=(100.0, 99.0)))
    assert "changes the translations most" in robustness_words(sweep("change", noise=(0.0, 9.0)))


@pytest.mark.parametrize(("value", "verb"), [(0.7, "tells well"), (0.4, "tells in part"), (0.1, "hardly tells")])
def test_the_strength_of_a_correlation_has_a_word(value, verb):
    measures = [Measure(n, v, 0.0, 1.0, (), 0.5) for n, v in (("cycle error", -0.2), ("both", value))]
    assert f"Uncertainty (both) {verb}" in uncertainty_words(measures)
