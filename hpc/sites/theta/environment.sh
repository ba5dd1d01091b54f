# Sourced before anything starts, on login and compute nodes; above this, `hpn site init` put what it was told.

if [ -n "${COBALT_JOBID:-}" ]; then
    export https_proxy=http://theta-proxy.tmi.alcf.anl.gov:3128
    export PMI_NO_FORK=1
    if [ -n "${HPN_IMAGES:-}" ]; then
        if [ -z "${HPN_MODULES:-}" ]; then
            module swap cray-mpich cray-mpich-abi
            export HPN_MODULES=loaded
        fi
        # The images' MPICH gives way to the host's (same ABI), which knows the network.
        cray=/opt/cray
        [ -n "${HPN_HOST_MPI:-}" ] || export HPN_HOST_MPI="${CRAY_LD_LIBRARY_PATH:-}:$cray/diag/lib:$cray/ugni/default/lib64:\
$cray/udreg/default/lib64:$cray/xpmem/default/lib64:$cray/alps/default/lib64:$cray/wlm_detect/default/lib64"
    fi
fi
