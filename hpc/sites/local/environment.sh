# Sourced before anything starts; above this, `hpn site init` put what it was told.
