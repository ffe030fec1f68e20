"""Training data: files of labeled sequence and peaks -> codes and labels in three parts.

Begin with :mod:`~genomepred.data.source` (what the command line asked for) and
:func:`genomepred.data.read.open_data` (that, read). What comes out of it is ``Data``
(:mod:`~genomepred.data.examples`): epochs to train on, and validation and test examples, as codes
``uint8 [n, window]`` and labels ``float32 [n, tracks]``.

================================================ ===================================================
:mod:`~genomepred.data.source`                   options of a training: what the data are
:mod:`~genomepred.data.read`                     one call for all kinds of data
:mod:`~genomepred.data.examples`                 examples, epochs, what is shared by all kinds
:mod:`~genomepred.data.tables`                   columns of tables; texts as codes and numbers
:mod:`~genomepred.data.rows`                     rows of .csv, .tsv, .xlsx and .parquet as a stream
:mod:`~genomepred.data.labels`                   labeled sequences, and their split by rows
:mod:`~genomepred.data.peaks`                    peaks and their places; splits by region
:mod:`~genomepred.data.peak_files`               files of peaks, genomes and signals; manifests
:mod:`~genomepred.data.peak_data`                peaks against negatives, or with signals as labels
:mod:`~genomepred.data.negatives`                shuffled sequences, and windows that are no peaks
:mod:`~genomepred.data.signals`                  means of bigWig files over windows
:mod:`~genomepred.data.contigs`                  contigs under the names that labels have for them
:mod:`~genomepred.data.storage`                  room for codes: memory, or a mapped file
:mod:`~genomepred.data.synthetic`                sequences scored by a rule that is known
================================================ ===================================================
"""
