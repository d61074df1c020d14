"""Gunicorn worker classes, all under one contract suite (tests/contracts); gthread is Gunicorn's own."""
