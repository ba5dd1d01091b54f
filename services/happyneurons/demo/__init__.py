"""`hpn demo`: from a phantom of neurites through a simulated microscope to meshes, and how well it went."""
