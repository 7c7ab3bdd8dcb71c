"""Adapters between lrsearch and outside systems, one module each; none loads until asked for."""
