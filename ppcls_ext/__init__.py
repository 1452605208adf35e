"""Image classification on PaddlePaddle: `create_model`, `list_models`, `load_weights`.

The three names are resolved when they are first used: `import ppcls_ext` does not import Paddle.
"""

# Before anything that imports Paddle: with PaddlePaddle 2.6.2, importing scikit-learn after Paddle ends in a
# segmentation fault (inflateReset2) unless the interpreter's own zlib was loaded first.
import warnings as _warnings
import zlib as _zlib  # noqa: F401
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppcls_ext.models import create_model, list_models
    from ppcls_ext.weights import load_weights

# Paddle says it at its import; a second compilation of our operators is nothing to hurry for.
_warnings.filterwarnings("ignore", message="No ccache found")

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "list_models", "load_weights"]


def __getattr__(name: str) -> Any:
    if name in ("create_model", "list_models"):
        from ppcls_ext import models

        found = {"create_model": models.create_model, "list_models": models.list_models}
    elif name == "load_weights":
        from ppcls_ext import weights

        found = {"load_weights": weights.load_weights}
    else:
        raise AttributeError(f"module 'ppcls_ext' has no attribute '{name}'")
    globals().update(found)  # the next access does not come here
    return found[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
