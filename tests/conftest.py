"""What every test runs under."""

import gc


def pytest_collection_finish() -> None:
    """Leave what the imports made out of every later garbage collection: it stays to the end.

    Looking through all of torch and transformers at every full collection takes more time than many a small test.
    """
    gc.collect()
    gc.freeze()
