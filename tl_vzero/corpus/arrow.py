"""pyarrow, which the extra `corpus` brings."""

from types import ModuleType

from tl_vzero.errors import DependencyError


def pyarrow() -> ModuleType:
    """The package pyarrow, with its Parquet module; raises DependencyError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DependencyError(
            "a corpus is written as Parquet, and pyarrow is not installed: pip install 'tl-vzero[corpus]'"
        ) from error
    return pyarrow  # type: ignore[no-any-return]
