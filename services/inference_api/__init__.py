"""HTTP: the Falcon application that translates requests into predictions, and the Gunicorn workers that run it."""
