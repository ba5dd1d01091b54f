# Sourced on nodes before anything starts; above this, `hpn site init` put what it was told.
# module load apptainer
