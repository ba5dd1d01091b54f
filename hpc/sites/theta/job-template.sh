#!/bin/bash -l
#COBALT -n {{ num_nodes }}
#COBALT -t {{ wall_time_min }}
#COBALT -q {{ queue }}
#COBALT -A {{ project }}
#COBALT --attrs ssds=required:ssd_size=128:mcdram=cache:numa=quad:filesystems={{ optional_params.get("filesystems") or "home,theta-fs0" }}

export BALSAM_SITE_PATH={{ balsam_site_path }}
cd "$BALSAM_SITE_PATH" || exit 2
source ./environment.sh
# The launcher stops two minutes before the batch job does: ranks must have drained by then.
wall_min={{ wall_time_min }}
export HPN_BATCH_END=$(($(date +%s) + 60 * (wall_min > 3 ? wall_min - 2 : 1)))

export PYTHONPATH="$BALSAM_SITE_PATH/platform"
{{ launcher_cmd }} -j {{ job_mode }} -t {{ wall_time_min }} \
    {% for k, v in filter_tags.items() %}--tag {{ k }}={{ v }} {% endfor %}{{ partitions }}
