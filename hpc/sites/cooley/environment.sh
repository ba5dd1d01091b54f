# Sourced before anything starts, on login and compute nodes; above this, `hpn site init` put what it was told.
