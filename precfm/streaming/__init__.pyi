from precfm.streaming.maps import fit_map as fit_map
from precfm.streaming.maps import map_file as map_file
from precfm.streaming.samples import sample_file as sample_file
