#!/bin/bash -l
#PBS -N happyneurons
#PBS -l select={{ num_nodes }}:system=polaris
#PBS -l place=scatter
#PBS -l walltime={{ "%02d:%02d:00" % (wall_time_min // 60, wall_time_min % 60) }}
#PBS -l filesystems={{ optional_params.get("filesystems") or "home:eagle" }}
#PBS -q {{ queue }}
#PBS -A {{ project }}
#PBS -k doe
#PBS -r n

export BALSAM_SITE_PATH={{ balsam_site_path }}
cd "$BALSAM_SITE_PATH" || exit 2
source ./environment.sh
# The launcher stops two minutes before the batch job does: ranks must have drained by then.
wall_min={{ wall_time_min }}
export HPN_BATCH_END=$(($(date +%s) + 60 * (wall_min > 3 ? wall_min - 2 : 1)))

export PYTHONPATH="$BALSAM_SITE_PATH/platform"
{{ launcher_cmd }} -j {{ job_mode }} -t {{ wall_time_min }} \
    {% for k, v in filter_tags.items() %}--tag {{ k }}={{ v }} {% endfor %}{{ partitions }}
