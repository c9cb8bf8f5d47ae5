"""Fill the README's tables from report/results/*.json.

Each stands between <!-- table: NAME --> and <!-- end -->; everything else in the README stays.

    python report/readme.py      # or make readme; needs nothing but the standard library
"""

import re
from pathlib import Path

from sources import REPORT, ReportError, exit_with, read, record, write

TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"\{([^{}:]+):([^{}]*)\}")

RESULTS = """\
| model | measure, lower is better | validation | test |
|---|---|---|---|
| VAE, 20 latent dimensions, 3 seeds | -ELBO, nats per image | {vae-z20.val_elbo_nats:.2f}, {vae-z20-seed1.val_elbo_nats:.2f}, {vae-z20-seed2.val_elbo_nats:.2f} | {vae-z20.test_elbo_nats:.2f}, {vae-z20-seed1.test_elbo_nats:.2f}, {vae-z20-seed2.test_elbo_nats:.2f} |
| VAE, highest likelihood | -log p(x), nats per image, {vae-best.nll_samples:,} draws | | {vae-best.test_nll_nats:.2f} |
| flow, 4 pairs of couplings, 3 seeds | bits per dimension | {nf.val_bits_per_dim:.3f}, {nf-seed1.val_bits_per_dim:.3f}, {nf-seed2.val_bits_per_dim:.3f} | {nf.test_bits_per_dim:.3f}, {nf-seed1.test_bits_per_dim:.3f}, {nf-seed2.test_bits_per_dim:.3f} |
| multi-scale flow | bits per dimension, exact | {nf-multiscale.val_bits_per_dim:.3f} | {nf-multiscale.test_bits_per_dim:.3f} |
| GAN, 3 seeds | Frechet distance, floor {gan.frechet_floor:.1f} | {gan.val_frechet_distance:.1f}, {gan-seed1.val_frechet_distance:.1f}, {gan-seed2.val_frechet_distance:.1f} | {gan.frechet_distance:.1f}, {gan-seed1.frechet_distance:.1f}, {gan-seed2.frechet_distance:.1f} |
| GAN, the course's plain recipe | Frechet distance | {gan-template.val_frechet_distance:.1f} | {gan-template.frechet_distance:.1f} |
"""  # noqa: E501

# Measure, its key, decimals, whether its deviation is given.
MEASURES = [
    ("Frechet distance", "frechet_distance", ".2f", True),
    ("the same by the second judge", "random_frechet_distance", ".4f", True),
    ("precision", "precision", ".3f", True), ("recall", "recall", ".3f", True),
    ("coverage", "coverage", ".3f", True), ("clear digits, share", "clear_share", ".3f", True),
    ("nearly copies, share", "nearer_to_train_share", ".4f", False),
    ("parameters (of the GAN: G alone)", "parameters", ",", False),
]
COLUMNS = {"vae": "VAE", "gan": "GAN", "nf": "flow", "nf_multiscale": "multi-scale flow",
           "vae_best": "best VAE", "gan_template": "GAN, plain recipe", "floor": "floor"}

STUDY = """\
| case | -ELBO | -log p(x), {nll_samples:,} draws | reconstruction | KL | active units \
| clear samples, share | verdict |
|---|---|---|---|---|---|---|---|
"""
SHOWN = ("ELBO", "IWAE 50", "flow prior", "shifts, flow prior",
         "collapse: beta 30", "cure: beta 30, free bits 8", "overload: UAE")
STUDY_ROW = """\
| {name:} | {test_elbo_nats:.1f} | {test_nll_nats:.1f} | {reconstruction_nats:.1f} | \
{kl_nats:.1f} | {active_units:} | {samples_clear_share:.2f} | {verdict:} |
"""

SOAK = """\
| what was done to small runs and to files | times | lost or wrong |
|---|---|---|
"""
TRIED = {"killed": "SIGKILL at any moment, inside writes too, then --resume: the same bytes",
         "stopped": "Ctrl-C or SIGTERM, likewise", "disk_full": "disk full, likewise",
         "not_finite": "NaN in data, loss, gradient or weights, likewise",
         "damaged_files": "damaged data files and checkpoints, loaded",
         "absurd_flags": "absurd values of flags: each refused in one line, and no file touched"}


def filled(template: str, values: dict) -> str:
    """Replace each {key:format} by the value that the dotted key leads to."""
    def number(match: re.Match) -> str:
        value = values
        for part in match[1].split("."):
            value = value[part]
        return format(value, match[2])
    return NUMBER.sub(number, template)


def comparison(record: dict) -> str:
    """Return the table of the comparison, a row a measure; empty where a model has none.

    The deviation is over trainings; where there is one, over the sets of samples.
    """
    columns = {model: name for model, name in COLUMNS.items() if model in record}
    many = {model for model in columns if record[model].get("trainings", 1) > 1}
    titles = [f"{name}, {record[model]['trainings']} trainings" if model in many else name
              for model, name in columns.items()]
    sets = f"over {record['repeats']} sets of {record['samples']:,} samples"
    over = f"over trainings; of one training, {sets}" if many else sets
    lines = [f"| mean ± deviation {over} | {' | '.join(titles)} |",
             "|---" * (len(columns) + 1) + "|"]
    for name, key, decimals, deviates in MEASURES:
        cells = []
        for row in (record[model] for model in columns):
            cell = "" if row[key] is None else format(row[key], decimals)
            deviation = row.get(f"{key}_deviation")
            if deviation is None:
                deviation = row.get(f"{key}_sampling_deviation")
            if deviates and deviation is not None:
                cell += f" ± {format(deviation, decimals)}"
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def soak(record: dict) -> str:
    """Return the table of what runs survived."""
    return SOAK + "".join(f"| {name} | {record['tried'][key]:,} | {record['lost'][key]:,} |\n"
                          for key, name in TRIED.items())


def tables(results: Path) -> dict[str, str]:
    """Return every table by its name."""
    records = {file.stem: record(file) for file in results.glob("*.json")}
    study = records["study"]["rows"]
    return {
        "results": filled(RESULTS, records),
        "comparison": comparison(records["comparison"]),
        "study": filled(STUDY, study[0]) + "".join(filled(STUDY_ROW, row) for row in study
                                                   if row["name"] in SHOWN),
        **({"soak": soak(records["soak"])} if "soak" in records else {})}


def readme(text: str, results_folder: Path = REPORT / "results") -> str:
    """Return the README's text with its tables filled anew.

    Raises:
        KeyError: a table or a number is unknown.
    """
    found = tables(results_folder)
    return TABLE.sub(lambda match: match[1] + found[match[2]], text)


def main() -> None:
    """Fill the tables of README.md.

    Raises:
        ReportError: a result is missing.
    """
    file = REPORT.parent / "README.md"
    old = read(file)
    try:
        text = readme(old)
    except (LookupError, TypeError, ValueError) as error:
        raise ReportError(f"report/results lacks what README.md shows: {error!r}") from None
    write(file, text.encode())
    print("README.md: tables filled from report/results")


if __name__ == "__main__":
    exit_with(main)
