"""Words of descriptions that tell what a series is, where no attribute of the standard does."""

from __future__ import annotations

import re

from ctmr.io.dicom.series_kind.attributes import SeriesAttributes
from ctmr.io.series_kinds import Kind


def _words(patterns: str) -> re.Pattern[str]:
    """Return a pattern of whole words, which digits, signs and underscores end as blanks do.

    `patterns` are divided by blanks; an underscore stands for a blank, underscore, hyphen or nothing.
    """
    alternatives = "|".join(patterns.split()).replace("_", "[ _-]?")
    return re.compile(rf"(?<![a-z])(?:{alternatives})(?![a-z])")


_NAMES: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (Kind.SYNTHETIC, _words("synthetic synth sct pct mrcat pseudo_ct syn_ct synth_ct symri")),
    (
        Kind.LOCALIZER,
        _words(
            "[a-z]*scouts? locali[sz]ers? locali[sz]ation lokali[sz]er loc locator scano scanograms? survey surview "
            "topograms? topo pilot smart_brain (?:3|three|tri)_pl (?:3|three|tri)_planes? plan_scan übersicht"
        ),
    ),
    (
        Kind.CALIBRATION,
        _words("calibration asset_cal calib cal ref(?:erence)?_scan senseref pre_scan coil_survey coil_sens shim"),
    ),
    (Kind.FIELD_MAP, _words("field_map(?:ping|s)? fmap b[01]_map(?:ping)? spin_echo_field_map")),
    (
        Kind.PERFUSION,
        _words(
            "perf perfusion pwi dsc dce p?c?asl r(?:el)?_cb[fv] cb[fv] (?:rel)?mtt ttp tmax pbp gbp ctp vpct ktrans"
        ),
    ),
    (
        Kind.MAP,
        _words(
            r"e?adc apparent_diffusion average_dc exp(?:onential)?_(?:adc|apparent) col_fa fractional_anisotropy "
            r"fa(?!\W?_\W?\d) t[12](?:\*|star|rho)?_maps? t1rho r[12](?:\*|star)?_maps? maps? mapping qsm mwf tensor "
            r"z_eff iodine (?:auto_)?seg_3d (?:auto_)?segmentations? label_maps? "
            r"(?:brain|head|lesion|tumou?r|tissue)_masks?"
        ),
    ),
    (Kind.PROJECTION, _words("mips? m(?:in)?ip mnip vrt vr max_ip projection pjn volren ssd")),
    (Kind.DIFFUSION, _words(r"dwi? diff? diffusion dti dsi hardi noddi dki resolve tracew? b[=]?_\d{3,4}")),
    (Kind.TIME_SERIES, _words("bold r?s?_fmri resting(?:_state)? cine time_series dynamic sbref 4d")),
    (Kind.PHASE, _words("pha phase_(?:images?|map|img) imaginary real_image")),
    (
        Kind.ANGIOGRAPHY,
        _words("tof mra mrv (?:mr|ce)?_angio angiograph?y angiographie venogra(?:m|phy) veno pca cemra tricks twist"),
    ),
    (Kind.SUBTRACTION, _words("subtract(?:ed|ion)? subtr subs difference")),
    (Kind.INVERSION, _words("inv_[12]")),
    (Kind.SCREEN, _words("screen_(?:save|shot)s? report snapshot capture dose_(?:report|info|record|sheet)")),
)
"""Kind → words of a description that name it, in the order of asking."""
_NAMES_OF_CT: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (Kind.SCREEN, _words("patient_protocol")),
    (Kind.TIME_SERIES, _words("bolus care_bolus smart_prep (?:pre)?_monitoring tracker")),
)
_ONLY_OF_MR = frozenset(
    {Kind.DIFFUSION, Kind.ANGIOGRAPHY, Kind.PHASE, Kind.INVERSION, Kind.FIELD_MAP, Kind.CALIBRATION}
)
"""Kinds whose words mean something else in a CT: an angiography there still shows all tissue."""

_HEAD = re.compile(
    _words(
        "heads? head_(?:and)?_neck neck_head brain(?:_stem)? cerebell[a-z]* skull_(?:base)? tmj nasopharyn[a-z]* "
        "crani[a-z]* cerebr[a-z]* neuro[a-z]* kopf sch(?:ä|ae)del hirn encephal[a-z]* encefal[a-z]* "
        "c[ée]r[ée]br[a-z]* t[êe]te cr[âa]ne cabeza cr[áa]neo h&n hn iac iam orbits? face facial "
        "sinus(?:es)? pituitary sella temporal petrous ears? jaw mandible maxilla eyes? hippocamp[a-z]* stereota[a-z]* "
        "whole_body total_body"
    ).pattern
    + "|[頭头颅脑脳]"
)
_OTHER = re.compile(
    _words(
        "chest thora[a-z]* lungs? abd abdom[a-z]* pelvi[a-z]* liver hepat[a-z]* kidneys? renal heart cardia[a-z]* "
        "coronar(?:y|ies) breasts? mamm[a-z]* prostat[a-z]* uter[a-z]* ovar[a-z]* aort[a-z]* [ctls]s?_spine "
        "spines? spinal lumbar lumbal sacrum sacral cervical lws bws hws wirbel[a-z]* neck hals cou larynx thyroid "
        "caroti[a-z]* knees? hips? shoulders? elbows? wrists? hands? ankles? foot feet femur tibia humerus forearm "
        "thighs? calf legs? extremit[a-z]* bowel colon rectum pancreas spleen bladder urinary mediastinum sternum "
        "ribs? becken bauch knie h(?:ü|ue)fte lunge torso trunk mrcp enterography scrotum placenta fetal fetus"
    ).pattern
    + "|[胸腹肺脊]"
)

_CONTRAST = _words(
    r"\+_c c_\+ post(?!_(?:op|fossa)) gd \+_gd gad[a-z]* ce t1c km contrast mdc dotarem magnevist t1w?_(?:ce|gd|c)"
)
_NO_CONTRAST = _words("pre without w/o wo non?_con[a-z]* no_gd nativ plain non?_ce ohne unenhanced precontrast -_c")


def named_kind(name: str, *, is_ct: bool = False) -> Kind | None:
    """Return the kind that a description (lower case) names, ``None`` when it names none."""
    for kind, pattern in (*_NAMES_OF_CT, *_NAMES) if is_ct else _NAMES:
        if not (is_ct and kind in _ONLY_OF_MR) and pattern.search(name):
            return kind
    return None


def other_body_part(found: SeriesAttributes) -> bool:
    """True when a series shows another part of the body than the head, by the first text that says anything."""
    for text in (found.name, found.body_part, found.exam):
        if _HEAD.search(text):
            return False
        if _OTHER.search(text):
            return True
    return False


def says_contrast(name: str) -> bool:
    """True when a description says that contrast agent was given."""
    return bool(_CONTRAST.search(name))


def says_no_contrast(name: str) -> bool:
    """True when a description says that none was given yet."""
    return bool(_NO_CONTRAST.search(name))
