"""Values of ImageType and the like that say what a series is."""

from __future__ import annotations

from ctmr.io.series_kinds import Kind

TERMS: tuple[tuple[Kind, frozenset[str]], ...] = (
    (Kind.LOCALIZER, frozenset({"LOCALIZER", "SCOUT", "SURVEY"})),
    (
        Kind.SCREEN,
        frozenset(
            {"SCREEN SAVE", "SCREEN_SAVE", "SCREENSAVE", "POSDISP", "CSA REPORT", "CSA BLACK IMAGE", "DOSE_INFO"}
        ),
    ),
    (
        Kind.FIELD_MAP,
        frozenset({"B0 MAP", "B0", "B0_MAP", "FIELD_MAP", "FIELDMAP", "FIELD MAP", "B1 MAP", "B1", "B1_MAP"}),
    ),
    (
        Kind.PERFUSION,
        frozenset(
            {
                *("PERFUSION", "ASL", "RELCBV", "RELCBF", "RELMTT", "RCBV", "RCBF", "CBF", "CBV", "MTT", "TTP", "TMAX"),
                *("PBP", "GBP", "CBP", "PERFUSION_ASL", "PWI"),
            }
        ),
    ),
    (
        Kind.MAP,
        frozenset(
            {
                *("ADC", "EADC", "ADC_UNSPECIFIED", "FA", "COLFA", "FAC", "TENSOR", "TENSOR_B0", "EXP", "QMAP"),
                *("T1 MAP", "T2 MAP", "T1_MAP", "T2_MAP", "T2_STAR MAP", "T2_STAR_MAP", "T2STAR_MAP", "R2_MAP"),
                *("R2_STAR_MAP", "R2_STAR MAP", "PD MAP", "PD_MAP", "RHO", "SNR_MAP", "METABOLITE_MAP", "TEMPERATURE"),
                *("QUANTITY", "QSM", "R_COEFFICIENT", "STDDEV", "STD_DEV", "T_TEST", "MATERIAL_MAP", "Z_EFF", "IODINE"),
                *("DIFFUSION_ANISO", "MEAN_DIFF", "FRACTIONAL_ANISO", "SEGMENTATION", "LABELMAP", "MASK"),
            }
        ),
    ),
    (
        Kind.PROJECTION,
        frozenset(
            {
                *("MIP", "MNIP", "MINIP", "MAX_IP", "MIN_IP", "MPR_MIP", "MIP_SUB", "PROJECTION IMAGE", "VRT"),
                *("PROJECTION_IMAGE", "VOLUME_RENDER", "3D RENDERING", "3D_RENDERING", "RENDERED", "COLLAPSE"),
            }
        ),
    ),
    (
        Kind.DIFFUSION,
        frozenset({"DIFFUSION", "TRACEW", "TRACE", "DIFFUSION_ISO", "DIFFUSION_ATTNTD", "DWI", "DTI", "COMP_DIF"}),
    ),
    (Kind.TIME_SERIES, frozenset({"FMRI", "CINE", "REALTIME", "BOLD"})),
    (
        Kind.PHASE,
        frozenset(
            {
                *("P", "PHASE", "PHASE MAP", "PHASE_MAP", "P_FFE", "P_SE", "P_IR", "P_TSE", "P_TFE", "P_PCA"),
                *("R", "REAL", "R_FFE", "R_SE", "R_IR", "I", "IMAGINARY", "I_FFE", "I_SE", "I_IR", "VELOCITY MAP"),
                *("VELOCITY_MAP", "VELOCITY", "FLOW_ENCODED", "PHASE_DIFF"),
            }
        ),
    ),
    (Kind.ANGIOGRAPHY, frozenset({"ANGIO", "TOF", "ANGIO_TIME", "PCA", "M_PCA"})),
    (Kind.SUBTRACTION, frozenset({"SUBTRACT", "SUBTRACTION", "SUB", "SUBTRACTED"})),
)
"""Values of ImageType, FrameType and the like, of the standard and as scanners write them, in the order of asking."""
