from precfm.latents.reading import Latents as Latents
from precfm.latents.reading import open_latents as open_latents
from precfm.latents.reading import read_labels as read_labels
from precfm.latents.writing import write_latents as write_latents
