"""Conformance suites for those who extend lrsearch or Optuna. Needs pytest."""

from lrsearch.testing.pruners import CurvePrunerTestCase, PrunerTestCase

__all__ = ["CurvePrunerTestCase", "PrunerTestCase"]
