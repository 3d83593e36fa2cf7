from precfm.training.draws import NotRandom as NotRandom
from precfm.training.draws import Objective as Objective
from precfm.training.options import TrainingOptions as TrainingOptions
from precfm.training.state import TrainingResult as TrainingResult
from precfm.training.trainer import train as train
