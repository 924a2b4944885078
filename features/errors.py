"""The root of our exceptions."""


class ConcordantError(Exception):
    """What a person can mend: the message says what is wrong, what was found and what to do. It never holds a value of a patient."""
