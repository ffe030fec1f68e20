"""A model as written -> the one form that everything computes on, and what follows from it.

:mod:`.fuse` rewrites a model into the layers of :mod:`.blocks`; :mod:`.receptive_field` says what
their positions see, where they stand and how much they compute; :mod:`.shared` and :mod:`.long`
compute overlapping windows together, where that is less work.
"""
