#!/usr/bin/env bash
# Sends independent trainings to a Slurm cluster, a job each; further options are sbatch's:
#
#   bash code/slurm.sh study --partition=cpu    # a case of the study a job, then study.py --collect
#   bash code/slurm.sh seeds --partition=gpu    # the three models, the plain GAN, the best VAE, with three more seeds
#
# A job that is stopped or requeued goes on from its last epoch when it is sent again.
#SBATCH --cpus-per-task=2 --mem=4G --time=06:00:00 --requeue --output=study/slurm-%A-%a.log
set -euo pipefail
cases=(
    "ELBO" "beta 0.25" "beta 4" "warm-up 10" "free bits 2" "free bits 8"
    "free bits 0.5 a dimension" "flow posterior" "flow prior" "IWAE 50" "Gaussian likelihood"
    "shifts" "shifts, flow prior" "collapse: beta 30" "cure: beta 30, free bits 8" "overload: UAE")
seeds=(3 4 5)
models=("a3_vae_template.py" "a3_nf_template.py" "a3_gan_template.py"
    "a3_gan_template.py --recipe template" "vae_variants.py --recipe best")
python=.venv/bin/python

case ${1-} in
    study) jobs=${#cases[@]} ;;
    seeds) jobs=$((${#models[@]} * ${#seeds[@]})) ;;
    *) echo "error: '${1-}' is not study or seeds" >&2; exit 2 ;;
esac

if [ -z "${SLURM_ARRAY_TASK_ID-}" ]; then  # on the login node
    cd "$(dirname "$0")/.."
    mkdir -p study
    sent=$(sbatch --parsable --array="0-$((jobs - 1))" "${@:2}" code/slurm.sh "$1")
    echo "sent: $jobs jobs, array ${sent%%;*}"
    if [ "$1" = study ]; then
        sbatch --dependency="afterok:${sent%%;*}" "${@:2}" --output=study/slurm-%j.log \
            --wrap "$python code/study.py --collect"
    fi
elif [ "$1" = study ]; then  # in a job; Slurm starts it where sbatch was called
    exec "$python" code/study.py --out study --cases "${cases[SLURM_ARRAY_TASK_ID]}"
else
    read -ra model <<< "${models[SLURM_ARRAY_TASK_ID / ${#seeds[@]}]}"
    exec "$python" "code/${model[0]}" "${model[@]:1}" --resume \
        --seed "${seeds[SLURM_ARRAY_TASK_ID % ${#seeds[@]}]}"
fi
