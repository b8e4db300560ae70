"""Prune and quantize Keras 3 models, ship them to the runtime that runs them, measure the cost.

Public names, in the order in which data flows. Importing this package loads no framework: each
name is fetched from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "load_data": "secateur.datasets",
    "Data": "secateur.datasets",
    "inspect": "secateur.inspection",
    "weight_table": "secateur.weights",
    "Select": "secateur.weights",
    "Schedule": "secateur.arrays.schedules",
    "Rewind": "secateur.arrays.schedules",
    "Prune": "secateur.methods.prune",
    "PruneUnits": "secateur.methods.units",
    "RigL": "secateur.methods.rigl",
    "KeepZeros": "secateur.methods.keep_zeros",
    "FineTune": "secateur.methods.fine_tune",
    "Quantize": "secateur.methods.quantize",
    "TrainingLoop": "secateur.project",
    "Train": "secateur.training",
    "reestimate_batchnorm": "secateur.training",
    "Export": "secateur.recipe",
    "Step": "secateur.recipe",
    "Recipe": "secateur.recipe",
    "copy_model": "secateur.compression",
    "compress": "secateur.compression",
    "Promise": "secateur.promises",
    "export": "secateur.exporting",
    "load": "secateur.loading",
    "measure": "secateur.measurement",
    "pruning_sensitivity": "secateur.sensitivity",
    "quantization_sensitivity": "secateur.sensitivity",
    "targets": "secateur.payoff",
    "run": "secateur.pipeline",
    "Run": "secateur.pipeline",
    "Grid": "secateur.grids",
    "sweep": "secateur.sweeps",
    "Sweep": "secateur.sweeps",
    "choose": "secateur.choosing",
    "Choice": "secateur.choosing",
    "SecateurError": "secateur.errors",
}
_RENAMED = {"load_data": "load"}

# In the order in which data flows, not of the alphabet.

__all__ = [  # noqa: RUF022
    "load_data",
    "Data",
    "inspect",
    "weight_table",
    "Select",
    "Schedule",
    "Rewind",
    "Prune",
    "PruneUnits",
    "RigL",
    "KeepZeros",
    "FineTune",
    "Quantize",
    "TrainingLoop",
    "Train",
    "reestimate_batchnorm",
    "Export",
    "Step",
    "Recipe",
    "copy_model",
    "compress",
    "Promise",
    "export",
    "load",
    "measure",
    "pruning_sensitivity",
    "quantization_sensitivity",
    "targets",
    "run",
    "Run",
    "Grid",
    "sweep",
    "Sweep",
    "choose",
    "Choice",
    "SecateurError",
]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from secateur.arrays.schedules import Rewind, Schedule
    from secateur.choosing import Choice, choose
    from secateur.compression import compress, copy_model
    from secateur.datasets import Data
    from secateur.datasets import load as load_data
    from secateur.errors import SecateurError
    from secateur.exporting import export
    from secateur.grids import Grid
    from secateur.inspection import inspect
    from secateur.loading import load
    from secateur.measurement import measure
    from secateur.methods.fine_tune import FineTune
    from secateur.methods.keep_zeros import KeepZeros
    from secateur.methods.prune import Prune
    from secateur.methods.quantize import Quantize
    from secateur.methods.rigl import RigL
    from secateur.methods.units import PruneUnits
    from secateur.payoff import targets
    from secateur.pipeline import Run, run
    from secateur.project import TrainingLoop
    from secateur.promises import Promise
    from secateur.recipe import Export, Recipe, Step
    from secateur.sensitivity import pruning_sensitivity, quantization_sensitivity
    from secateur.sweeps import Sweep, sweep
    from secateur.training import Train, reestimate_batchnorm
    from secateur.weights import Select, weight_table


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
