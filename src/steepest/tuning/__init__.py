"""Searches for hyper-parameters: by grid, at random, guided, or by successive halving.

``tune`` runs an objective with one candidate after the other and keeps the record, in memory or in
a database, so that a search can be stopped and go on, and be shared by processes and machines.
"""

from steepest.tuning.results import Record as Record
from steepest.tuning.results import Tuned as Tuned
from steepest.tuning.search import METHODS as METHODS
from steepest.tuning.search import tune as tune
from steepest.tuning.space import Distribution as Distribution
from steepest.tuning.space import choice as choice
from steepest.tuning.space import integer as integer
from steepest.tuning.space import log_uniform as log_uniform
from steepest.tuning.space import uniform as uniform
from steepest.tuning.study import StudyError as StudyError
from steepest.tuning.trial import Pruned as Pruned
from steepest.tuning.trial import Trial as Trial
