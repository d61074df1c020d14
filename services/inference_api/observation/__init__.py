"""What is known of a request when it has ended: counted, timed, logged in one line, told to who asked, and traced.

`observer.py` is the middleware, `request.py` what resources note; the other three say it to those who want to know.
"""
