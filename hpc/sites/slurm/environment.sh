# Sourced on nodes before anything starts; above this, `hpn site init` put what it was told.
# module load apptainer

# Steps share the batch job's nodes: Balsam decides what runs where, not srun.
export SLURM_OVERLAP=1
