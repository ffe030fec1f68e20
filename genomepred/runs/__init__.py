"""Runs: genomes in, published prediction files out; resumed, merged, verified, told about.

A run is a folder and a ``run.json`` in it (``folder``), which holds its signature. What is asked
for is one ``RunSpec`` (``spec``). What becomes a file is a work (``work``): a genome, of which
there are an identity, parts and a sidecar. A shard is computed into a part, and a work
whose parts are all there is published. Who computes which shard is an executor's choice
(``executors``): this process, further ones, a cluster, or several commands. ``manifest.Run`` reads
what there is.
"""
