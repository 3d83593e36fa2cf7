from precfm.flows.models.base import VelocityNetwork as VelocityNetwork
from precfm.flows.models.base import Wrapper as Wrapper
from precfm.flows.models.dit import DiTVelocity as DiTVelocity
from precfm.flows.models.gaussian_skip import GaussianSkip as GaussianSkip
from precfm.flows.models.mixture_label import MixtureLabel as MixtureLabel
from precfm.flows.models.mixture_skip import MixtureSkip as MixtureSkip
from precfm.flows.models.mlp import MLPVelocity as MLPVelocity
from precfm.flows.models.unet import UNetVelocity as UNetVelocity
