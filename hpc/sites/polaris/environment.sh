# Sourced before anything starts, on login and compute nodes; above this, `hpn site init` put what it was told.

# Compute nodes reach the Balsam server through the proxy only; the agent, on a login node, must not use it.
if [ -n "${PBS_JOBID:-}" ]; then
    export http_proxy=http://proxy.alcf.anl.gov:3128 https_proxy=http://proxy.alcf.anl.gov:3128
    export HTTP_PROXY=$http_proxy HTTPS_PROXY=$https_proxy
    export no_proxy=localhost,127.0.0.1,*.alcf.anl.gov
fi

# Modules once, by the batch script's login shell: ranks have its environment, but no `module`.
if [ -n "${PBS_JOBID:-}" ] && [ -n "${HPN_IMAGES:-}" ]; then
    if [ -z "${HPN_MODULES:-}" ]; then
        module use /soft/modulefiles
        module load spack-pe-base apptainer cray-mpich-abi
        export HPN_MODULES=loaded
    fi
    # The images' MPICH gives way to the host's (same ABI), which knows the network.
    [ -n "${HPN_HOST_MPI:-}" ] || export HPN_HOST_MPI="${CRAY_LD_LIBRARY_PATH:-}:/opt/cray/pe/pals/1.2.12/lib"
    export APPTAINER_TMPDIR=/local/scratch APPTAINER_CACHEDIR=/local/scratch/apptainer-cache
fi
