"""Networks (and the identity) that turn images into the features that metrics compare; one file each."""
