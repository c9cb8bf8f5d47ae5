"""Run what has no results yet of the runs below, one after the other, and no other.

It says first which these are and how long they take. A stopped training goes on.

    python report/missing.py      # or make report, which then makes the PDF
"""

import subprocess
import sys

from sources import REPORT, exit_with

REPOSITORY = REPORT.parent
# Results, what writes them, minutes; in the order in which they need each other.
RUNS = {
    "vae-z20": ("code/a3_vae_template.py", 2),
    "vae-z20-seed1": ("code/a3_vae_template.py --seed 1", 2),
    "vae-z20-seed2": ("code/a3_vae_template.py --seed 2", 2),
    "vae-z2": ("code/a3_vae_template.py --zdim 2", 2),
    "nf": ("code/a3_nf_template.py", 9),
    "nf-seed1": ("code/a3_nf_template.py --seed 1", 9),
    "nf-seed2": ("code/a3_nf_template.py --seed 2", 9),
    "gan": ("code/a3_gan_template.py", 11),
    "gan-seed1": ("code/a3_gan_template.py --seed 1", 11),
    "gan-seed2": ("code/a3_gan_template.py --seed 2", 11),
    "gan-template": ("code/a3_gan_template.py --recipe template", 18),
    "vae-best": ("code/vae_variants.py --recipe best", 20),
    "vae-variant-z20-priorflow": ("code/vae_variants.py --prior flow", 3),
    "vae-variant-z20-objectiveuae": ("code/vae_variants.py --objective uae", 3),
    "nf-multiscale": ("code/nf_multiscale.py", 90),
    "vae-z20-walk": ("code/walks.py", 1),
    "comparison": ("code/evaluate.py", 40),
    "study": ("code/study.py", 90),
    "ablation-vae": ("code/ablation.py --models vae", 20),
    "ablation-nf": ("code/ablation.py --models nf", 70),
    "ablation-gan": ("code/ablation.py --models gan", 35),
    "benchmark": ("code/benchmark.py", 9),
    "demonstrations": ("report/demonstrations.py", 1),
}
RESUMED = ("template.py", "variants.py", "multiscale.py")  # scripts that have --resume


def main() -> int:
    """Run what is missing; return the exit status of the first run that fails, else 0."""
    results = REPORT / "results"
    missing = {name: run for name, run in RUNS.items() if not (results / f"{name}.json").exists()}
    if missing:
        print(f"report/results lacks {', '.join(missing)}: "
              f"{sum(minutes for _, minutes in missing.values())} min", flush=True)
    for command, _ in missing.values():
        script, *flags = command.split()
        flags += ["--resume"] if script.endswith(RESUMED) else []
        print(f"python {' '.join((script, *flags))}", flush=True)
        child = subprocess.Popen([sys.executable, script, *flags], cwd=REPOSITORY)
        try:
            status = child.wait()
        except KeyboardInterrupt:
            status = child.wait() or 130  # it has been told as well, and says how to go on
        if status:
            return status
    return 0


if __name__ == "__main__":
    exit_with(main)
