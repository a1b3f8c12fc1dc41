"""The grammatical number that a target's form shows, read off the pair of its forms."""

from tl_vzero.data.lexicon import Number

SINGULAR = frozenset({"is", "was", "has", "does", "this", "that", "himself", "herself", "itself", "myself", "yourself"})
PLURAL = frozenset({"are", "were", "have", "do", "these", "those", "themselves", "ourselves", "yourselves"})


def number_of(good: str, bad: str | None) -> Number | None:
    """The number of `good`: by a list of forms, or, for a verb, by which of the two has the ending -s.

    Returns None where neither says.

    >>> number_of("scares", "scare"), number_of("were", "is"), number_of("cat", "dog")
    ('singular', 'plural', None)
    """
    if good.lower() in SINGULAR:
        return "singular"
    if good.lower() in PLURAL:
        return "plural"
    if bad is None:
        return None
    if _third_person_of(good.lower(), bad.lower()):
        return "singular"
    if _third_person_of(bad.lower(), good.lower()):
        return "plural"
    return None


def _third_person_of(form: str, base: str) -> bool:
    return form in (f"{base}s", f"{base}es") or (base.endswith("y") and form == f"{base[:-1]}ies")
