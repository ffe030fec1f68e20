"""A model as written -> the one form that everything computes on, and what follows from it.

:mod:`.fuse` rewrites a model into the layers of :mod:`.blocks`; :mod:`.receptive_field` says what
their positions see and where they stand, :mod:`.cost` how much they compute, :mod:`.select` what
computes them; :mod:`.shared` and :mod:`.long` compute overlapping windows together.
"""
