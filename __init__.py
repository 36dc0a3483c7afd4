"""Run the SigLIP 2 teacher once over a corpus and train students from its cached embeddings.

The public names are loaded on first use, so that ``import siglip2_cache`` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import CacheError as CacheError
    from .precompute.build import build as build
    from .precompute.config import BuildConfig as BuildConfig
    from .precompute.planning.config import PlanConfig as PlanConfig
    from .protocols.evaluate import ProtocolConfig as ProtocolConfig
    from .protocols.evaluate import evaluate_protocol as evaluate_protocol
    from .store.cache import Cache as Cache
    from .store.cache import open_cache as open_cache
    from .student.config import TrainConfig as TrainConfig
    from .student.evaluation.compare import EvalConfig as EvalConfig
    from .student.evaluation.compare import evaluate_model as evaluate
    from .student.losses.objective import LossInputs as LossInputs
    from .student.losses.objective import TermValue as TermValue
    from .student.terms import LossTerm as LossTerm
    from .student.terms import register_term as register_term
    from .student.training.loggers import Callbacks as Callbacks
    from .student.training.trainer import train as train
    from .version import __version__ as __version__

__all__ = [
    "BuildConfig",
    "Cache",
    "CacheError",
    "Callbacks",
    "EvalConfig",
    "LossInputs",
    "LossTerm",
    "PlanConfig",
    "ProtocolConfig",
    "TermValue",
    "TrainConfig",
    "__version__",
    "build",
    "evaluate",
    "evaluate_protocol",
    "open_cache",
    "register_term",
    "train",
]

_HOMES = {
    "BuildConfig": ".precompute.config",
    "Cache": ".store.cache",
    "CacheError": ".errors",
    "Callbacks": ".student.training.loggers",
    "EvalConfig": ".student.evaluation.compare",
    "LossInputs": ".student.losses.objective",
    "LossTerm": ".student.terms",
    "PlanConfig": ".precompute.planning.config",
    "ProtocolConfig": ".protocols.evaluate",
    "TermValue": ".student.losses.objective",
    "TrainConfig": ".student.config",
    "__version__": ".version",
    "build": ".precompute.build",
    "evaluate": ".student.evaluation.compare:evaluate_model",
    "evaluate_protocol": ".protocols.evaluate",
    "open_cache": ".store.cache",
    "register_term": ".student.terms",
    "train": ".student.training.trainer",
}
"""Module of each public name, and its name there if that is another one."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, _, own = _HOMES[name].partition(":")
    return getattr(import_module(module, __name__), own or name)


def __dir__() -> list[str]:
    return sorted(__all__)
