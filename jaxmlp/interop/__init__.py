"""Other libraries: their weights to and from jaxmlp, files that others run, and scikit-learn's estimators."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmlp.interop.estimators import MLPClassifier as MLPClassifier
    from jaxmlp.interop.estimators import MLPRegressor as MLPRegressor

ESTIMATORS = ("MLPClassifier", "MLPRegressor")


def __getattr__(name: str) -> Any:
    """The estimators, made when they are asked for: importing scikit-learn takes a second."""
    if name not in ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from jaxmlp.interop import estimators
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        raise ImportError("scikit-learn is not installed: python3 -m pip install 'jaxmlp[sklearn]'") from None
    return getattr(estimators, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *ESTIMATORS])
