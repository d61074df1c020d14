"""Which workers, threads and spinning serve a mix of models best on this machine, found by serving it.

Requests are not batched by the server, so there is nothing about batches to be tuned.
"""
