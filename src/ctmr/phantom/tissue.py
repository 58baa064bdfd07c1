"""Physical properties of the tissues that the head phantom is made of.

Sources
-------
CT numbers at about 120 kV follow the elemental compositions of ICRU Report 46 (1992) as converted to
Hounsfield units by Schneider, Bortfeld and Schlegel, *Phys. Med. Biol.* 41 (1996) 111-124; brain, blood
and lesion values are the usual clinical reading ranges. Relaxation times at 1.5 T lie inside the ranges
of Stanisz et al., *Magn. Reson. Med.* 54 (2005) 507-512, of the review by Bojorquez et al., *Magn. Reson.
Imaging* 35 (2017) 69-80 (3 T, used for the order between tissues) and of the BrainWeb phantom (Kwan, Evans
and Pike, *IEEE Trans. Med. Imaging* 18 (1999) 1085-1097). Proton density is water content relative to CSF.

Every number is **rounded within a literature range**, not a measurement; the values for cartilage, teeth,
mucosa, glands and lesions are plausible choices by appearance.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ctmr.imaging.hounsfield import AIR_HU


class Tissue(IntEnum):
    """Material of a voxel; the integers are the values of ``PhantomHead.labels``."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    CORTICAL_BONE = 4
    DIPLOE = 5
    PETROUS_BONE = 6
    TOOTH = 7
    CARTILAGE = 8
    MUCOSA = 9
    GLAND = 10
    AIRWAY = 11
    DURA = 12
    CSF = 13
    GREY_MATTER = 14
    WHITE_MATTER = 15
    DEEP_GREY = 16
    CEREBELLAR_CORTEX = 17
    NERVE = 18
    VITREOUS = 19
    LENS = 20
    BLOOD = 21
    CALCIFICATION = 22
    TUMOUR = 23
    OEDEMA = 24
    HAEMORRHAGE = 25


@dataclass(frozen=True)
class TissueProperties:
    """Values of one tissue in CT and spin-echo MR.

    Attributes
    ----------
    hu
        CT number in Hounsfield units at about 120 kV.
    t1_ms, t2_ms
        Longitudinal and transverse relaxation time at 1.5 T in milliseconds.
    proton_density
        Visible protons relative to CSF, 0 to 1.
    """

    hu: float
    t1_ms: float
    t2_ms: float
    proton_density: float


PROPERTIES: dict[Tissue, TissueProperties] = {
    # Air gives no signal; its relaxation times only keep the equation finite.
    Tissue.AIR: TissueProperties(AIR_HU, 1000, 50, 0.0),
    Tissue.AIRWAY: TissueProperties(AIR_HU, 1000, 50, 0.0),
    # ICRU 46 adipose tissue and skeletal muscle; skin's HU is lowered by hair and by the fat it rests on.
    Tissue.SKIN: TissueProperties(25, 420, 50, 0.72),
    Tissue.FAT: TissueProperties(-95, 280, 70, 0.92),
    Tissue.MUSCLE: TissueProperties(55, 950, 42, 0.78),
    # Cortical bone keeps its water too tightly bound for a spin echo (T2 below 1 ms): nearly no signal.
    Tissue.CORTICAL_BONE: TissueProperties(1550, 900, 10, 0.05),
    Tissue.PETROUS_BONE: TissueProperties(1850, 900, 10, 0.05),
    Tissue.TOOTH: TissueProperties(2400, 900, 5, 0.01),
    # Diploe is a mixture of trabeculae and fatty marrow.
    Tissue.DIPLOE: TissueProperties(560, 380, 55, 0.42),
    Tissue.CARTILAGE: TissueProperties(105, 850, 38, 0.55),
    Tissue.MUCOSA: TissueProperties(32, 1000, 90, 0.82),
    Tissue.GLAND: TissueProperties(0, 620, 60, 0.82),
    Tissue.DURA: TissueProperties(60, 750, 24, 0.45),
    Tissue.CSF: TissueProperties(6, 4000, 1800, 1.0),
    # Brain: HU as read clinically (grey 37-41, white 25-32); water content .80-.83 and .70-.72 of CSF.
    # Grey matter is at its upper end, since partial volume with the sulci lowers what is measured to 34-38.
    Tissue.GREY_MATTER: TissueProperties(41, 1080, 97, 0.81),
    Tissue.WHITE_MATTER: TissueProperties(27, 550, 74, 0.71),
    Tissue.DEEP_GREY: TissueProperties(38, 880, 84, 0.78),
    Tissue.CEREBELLAR_CORTEX: TissueProperties(38, 1000, 92, 0.81),
    Tissue.NERVE: TissueProperties(34, 680, 76, 0.74),
    Tissue.VITREOUS: TissueProperties(8, 3500, 1200, 1.0),
    Tissue.LENS: TissueProperties(85, 900, 25, 0.6),
    # Flowing blood leaves the slice between excitation and echo: a flow void, hence the low density.
    Tissue.BLOOD: TissueProperties(58, 1300, 22, 0.15),
    Tissue.CALCIFICATION: TissueProperties(280, 800, 30, 0.45),
    Tissue.TUMOUR: TissueProperties(44, 1400, 130, 0.9),
    Tissue.OEDEMA: TissueProperties(20, 1450, 160, 0.9),
    # Acute to subacute blood: dense in CT, T1 shortened by methaemoglobin.
    Tissue.HAEMORRHAGE: TissueProperties(72, 680, 60, 0.85),
}
