"""A recipe at many settings: what a smaller gap costs, drawn and told with intervals.

In the order of the work:

    plan            swept values, seeds, one run for each combination
    job, point      the runs, one after the other, or several at once in workers
    lending         the initial model judged once for all of them
    interpolating   the weights between before and after
    checkpoints     what one set of weights scores, and its gap over the gap before
    front           over seeds: means, intervals, the front, trends
    training_free   transforms that train nothing, on the same axes
    quality         gap against quality
    halves, picking choosing on one half, reporting on the other
    running         all of it; writing: the files of numbers
"""

from modalign.sweeping.checkpoints import Checkpoint
from modalign.sweeping.front import Setting, pareto
from modalign.sweeping.interpolating import curve, model_at
from modalign.sweeping.picking import Picked, pick
from modalign.sweeping.quality import Quality, regress
from modalign.sweeping.running import Sweep, sweep

__all__ = [
    "Checkpoint",
    "Picked",
    "Quality",
    "Setting",
    "Sweep",
    "curve",
    "model_at",
    "pareto",
    "pick",
    "regress",
    "sweep",
]
