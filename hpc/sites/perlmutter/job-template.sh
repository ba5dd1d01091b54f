#!/bin/bash -l
#SBATCH --job-name=happyneurons
#SBATCH --nodes={{ num_nodes }}
#SBATCH --time={{ wall_time_min }}
#SBATCH --qos={{ queue }}
#SBATCH --account={{ project }}
#SBATCH --constraint={{ optional_params.get("constraint") or "gpu" }}
{% if (optional_params.get("constraint") or "gpu").startswith("gpu") %}#SBATCH --gpus-per-node=4{% endif %}
{% if optional_params.get("reservation") %}#SBATCH --reservation={{ optional_params["reservation"] }}{% endif %}

export BALSAM_SITE_PATH={{ balsam_site_path }}
cd "$BALSAM_SITE_PATH" || exit 2
source ./environment.sh
# The launcher stops two minutes before the batch job does: ranks must have drained by then.
wall_min={{ wall_time_min }}
export HPN_BATCH_END=$(($(date +%s) + 60 * (wall_min > 3 ? wall_min - 2 : 1)))

export PYTHONPATH="$BALSAM_SITE_PATH/platform"
{{ launcher_cmd }} -j {{ job_mode }} -t {{ wall_time_min }} \
    {% for k, v in filter_tags.items() %}--tag {{ k }}={{ v }} {% endfor %}{{ partitions }}
