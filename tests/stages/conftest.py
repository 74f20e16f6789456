"""Hypothesis without a deadline: on a shared machine a slow example is no defect."""

from hypothesis import settings

settings.register_profile("prefmill", deadline=None)
settings.load_profile("prefmill")
