"""Batch jobs: takes them from the queue in Redis (RQ) and runs them on the same models as the API."""
