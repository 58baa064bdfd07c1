"""The CycleGAN algorithm: networks, losses, image pool, one step, weight average."""
