from precfm.training.batched import train_many as train_many
from precfm.training.batches import Rows as Rows
from precfm.training.draws import NotRandom as NotRandom
from precfm.training.draws import Objective as Objective
from precfm.training.options import TrainingOptions as TrainingOptions
from precfm.training.shards import ShardedRows as ShardedRows
from precfm.training.state import TrainingResult as TrainingResult
from precfm.training.trainer import train as train
