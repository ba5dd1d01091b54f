# Sourced before anything starts, on login and compute nodes; above this, `hpn site init` put what it was told.

# Compute nodes reach the Balsam server through the proxy only; the agent, on a login node, must not use it.
if [ -n "${PBS_JOBID:-}" ]; then
    export http_proxy=http://proxy.alcf.anl.gov:3128 https_proxy=http://proxy.alcf.anl.gov:3128
    export HTTP_PROXY=$http_proxy HTTPS_PROXY=$https_proxy
    export no_proxy=localhost,127.0.0.1,*.alcf.anl.gov
fi
