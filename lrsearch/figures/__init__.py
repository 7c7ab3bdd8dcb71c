"""Figures, described once and drawn by two libraries.

``description`` is what a figure shows: plain numbers and words, which tests can read. ``curve`` and
``study`` say what the figures of a training, a study and a comparison are; ``with_matplotlib`` and
``with_plotly`` draw any of them. Neither library is needed until something is drawn.
"""
