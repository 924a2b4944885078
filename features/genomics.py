"""Genomics: copies of variants and star alleles, polygenic scores. A position that was not called is NaN, never the reference."""

from collections.abc import Callable

import numpy as np

from features.feature import AsOf, Feature, Floats, latest


def _variant(name: str, rsid: str, meaning: str) -> Feature:
    return Feature(
        name=name,
        modality="genomics",
        unit="copies",
        meaning=f"{meaning} ({rsid}), copies of the variant allele; NaN where not called",
        concepts=(f"variant:{rsid}",),
        compute=latest(f"variant:{rsid}"),
    )


def called(diplotype: str) -> tuple[str, ...] | None:
    """The two star alleles of a reported diplotype, None unless both were called."""
    alleles = tuple(allele.strip() for allele in diplotype.split("/"))
    return alleles if all(allele[:1] == "*" and allele[1:2].isdigit() for allele in alleles) else None


def _copies(diplotype: str, stars: tuple[str, ...]) -> float:
    alleles = called(diplotype)
    return float("nan") if alleles is None else float(sum(allele in stars for allele in alleles))


def _alleles(gene: str, *stars: str) -> Callable[[AsOf], Floats]:
    def compute(at: AsOf) -> Floats:
        known = at.known(f"diplotype:{gene}")
        copies_M = np.array([_copies(text, stars) for text in at.text(known)], np.float64)
        return known.pick(known.last_row(), copies_M)

    return compute


def _star(name: str, gene: str, star: str, meaning: str) -> Feature:
    return Feature(
        name=name, modality="genomics", unit="copies", meaning=meaning, concepts=(f"diplotype:{gene}",), compute=_alleles(gene, star)
    )


def _score(name: str, meaning: str) -> Feature:
    return Feature(name=name, modality="genomics", unit="{sd}", meaning=meaning, concepts=(name,), compute=latest(name))


FEATURES: tuple[Feature, ...] = (
    _star("cyp2c9_star2", "CYP2C9", "*2", "Copies of CYP2C9*2 (decreased function)"),
    _star("cyp2c9_star3", "CYP2C9", "*3", "Copies of CYP2C9*3 (no function)"),
    _variant("vkorc1_1639_copies", "rs9923231", "VKORC1 -1639G>A"),
    _variant("slc22a1_r61c_copies", "rs12208357", "SLC22A1 R61C"),
    _variant("slc22a1_420del_copies", "rs72552763", "SLC22A1 420del"),
    _variant("slc22a1_g401s_copies", "rs34130495", "SLC22A1 G401S"),
    _variant("tcf7l2_copies", "rs7903146", "TCF7L2 C>T"),
    _variant("kcnj11_e23k_copies", "rs5219", "KCNJ11 E23K"),
    _variant("arrb1_t370m_copies", "rs140226575", "ARRB1 T370M"),
    _variant("glp1r_g168s_copies", "rs6923761", "GLP1R G168S"),
    _variant("ctrb12_copies", "rs7202877", "CTRB1/2 T>G"),
    _variant("slco1b1_star5_copies", "rs4149056", "SLCO1B1*5 V174A"),
    _variant("cyp2c8_star3_copies", "rs10509681", "CYP2C8*3 K399R"),
    _variant("pparg_p12a_copies", "rs1801282", "PPARG P12A"),
    _variant("slc5a2_copies", "rs9934336", "SLC5A2 G>A"),
    _score("prs_beta_cell", "Polygenic score of beta-cell dysfunction"),
    _score("prs_insulin_resistance", "Polygenic score of insulin resistance"),
    _score("prs_bmi", "Polygenic score of body mass index"),
    _score("prs_ckd", "Polygenic score of chronic kidney disease"),
)
