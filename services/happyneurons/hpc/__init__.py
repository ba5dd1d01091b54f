"""HPC sites: what is known of them (`folders`), setting one up, checking one."""
