"""Runs: genomes in, published prediction files out; resumed, merged, verified, told about.

A run is a folder and a ``run.json`` in it (``manifest``). What is asked for is one ``RunSpec``
(``spec``). Per genome there is a record, parts and a sidecar (``genome``); a shard is computed into
a part (``shards``), and a genome whose parts are all there is published. Who computes which shard
is an executor's choice: this process, further ones (``workers``), or several commands.
"""
