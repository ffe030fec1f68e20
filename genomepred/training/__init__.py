"""Training: data (:mod:`genomepred.data`) -> an evaluated checkpoint.

:func:`genomepred.training.run.train` is what ``genomepred train`` calls: it opens the data, builds
the model, fits it, measures it (:mod:`genomepred.evaluation`) and writes checkpoints. Killed
anywhere, the same call goes on to the same weights.

======================================== ===========================================================
:mod:`~genomepred.training.spec`         what is to be trained: architecture, data, settings
:mod:`~genomepred.training.run`          that -> ``OUT``: checkpoints, history, metrics
:mod:`~genomepred.training.folder`       ``OUT``: whose it is, and whether it is finished
:mod:`~genomepred.training.measure`      metrics of what was held out, for the card
:mod:`~genomepred.training.fit`          the loop: epochs, steps, the state it goes on from
:mod:`~genomepred.training.tasks`        regression, binary, profile: losses, metrics, activations
:mod:`~genomepred.training.memory`       how many examples fit into memory at once
:mod:`~genomepred.training.precision`    what fp16 and bf16 change, for the card
:mod:`~genomepred.training.sweep`        many trainings and their comparison
======================================== ===========================================================
"""
