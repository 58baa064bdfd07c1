"""Generators, discriminators and the translator around a trained generator."""

from ctmr.networks.discriminators import build_discriminator
from ctmr.networks.generators import build_generator
from ctmr.networks.translator import RangeMeter, Translator

__all__ = ["RangeMeter", "Translator", "build_discriminator", "build_generator"]
