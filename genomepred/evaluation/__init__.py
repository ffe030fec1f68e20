"""Evaluation: a model and labeled data -> metrics with intervals, tables and pictures.

:func:`genomepred.evaluation.judge.evaluate` is what ``genomepred evaluate`` calls. There is one set
of metrics: those of :mod:`~genomepred.evaluation.intervals`, of counted rows. A bootstrap resample
is a count for each row; a point estimate is the same with every row counted once
(:mod:`~genomepred.evaluation.metrics`).

========================================== =========================================================
:mod:`~genomepred.evaluation.judge`        a model and a source -> ``OUT``: what evaluate writes
:mod:`~genomepred.evaluation.metrics`      metrics of all rows; sites of a map against peaks
:mod:`~genomepred.evaluation.intervals`    metrics of counted rows, and bootstrap intervals
:mod:`~genomepred.evaluation.provenance`   data of the model's own training must not become its test
:mod:`~genomepred.evaluation.figures`      learning curves, parity, ROC and PR curves, sweeps
========================================== =========================================================
"""
