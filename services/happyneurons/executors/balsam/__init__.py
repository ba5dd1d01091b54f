"""Executor `balsam`: jobs at HPC sites, by the REST interface of a Balsam server.

executor   the Executor: submit, poll, cancel; answers from what `watch` saw
watch      the thread that looks at jobs and batch jobs every few seconds; `books` is what it knows
keeper     carries out what `pool`, a pure function, decides: batch jobs asked for and given back
nodes      batch jobs by hand (`hpn site nodes|request|release`)
shape      a job's ranks and threads → nodes, ranks per node, packing
records    Balsam's states, tags and exit codes in our words; `explain`: why a job waits
api        REST calls; `token`: who we are; `config`: what the sites file says
"""
