"""One loop, objectives, data readers, recipes."""

from sightline.training.augment import Augment
from sightline.training.batches import PairBatches
from sightline.training.contrastive import Contrastive, contrastive_loss
from sightline.training.loop import Progress, TrainingResult, fit
from sightline.training.objective import Batch, Batches, Objective, Step
from sightline.training.options import Options
from sightline.training.readers import Pair, PairData, open_pairs
from sightline.training.recipes import RECIPES, Recipe, recipe
from sightline.training.train import build_clip, train_contrastive

__all__ = [
    "RECIPES", "Augment", "Batch", "Batches", "Contrastive", "Objective", "Options", "Pair", "PairBatches", "PairData",
    "Progress", "Recipe", "Step", "TrainingResult", "build_clip", "contrastive_loss", "fit", "open_pairs", "recipe",
    "train_contrastive",
]  # fmt: skip
