from precfm.encoders.base import Encoder as Encoder
from precfm.encoders.base import load as load
from precfm.encoders.base import save as save
from precfm.encoders.block_dct import BlockDCT as BlockDCT
from precfm.encoders.conv_vae import ConvVAE as ConvVAE
from precfm.encoders.diffusers_autoencoder import DiffusersAutoencoder as DiffusersAutoencoder
from precfm.encoders.pca import PCA as PCA
