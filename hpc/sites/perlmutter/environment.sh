# Sourced before anything starts, on login and compute nodes; above this, `hpn site init` put what it was told.

# Steps share the batch job's nodes: Balsam decides what runs where, not srun.
export SLURM_OVERLAP=1
# Modules once, by the batch script's login shell: ranks have its environment, but no `module`.
if [ -n "${SLURM_JOB_ID:-}" ] && [ -z "${HPN_MODULES:-}" ]; then
    module load cray-mpich-abi
    export HPN_MODULES=loaded
fi
