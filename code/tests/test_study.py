"""The study on a handful of images: every case runs, and failures are told."""

import json

import study
import vae_variants


def test_every_case_has_flags_that_parse_and_a_name_of_its_own():
    parsed = [vae_variants.parse_args(flags) for flags in study.CASES.values()]
    assert len({str(sorted(vars(args).items())) for args in parsed}) == len(study.CASES)


def test_cases_run_and_are_written(tmp_path, capsys):
    cases = ["Gaussian likelihood", "ELBO"]  # not the order of the study
    results = study.main(["--epochs", "1", "--limit", "256", "--dataset", "sample", "--device",
                          "cpu", "--out", str(tmp_path), "--cases", *cases])
    assert [row["name"] for row in results["rows"]] == cases
    for row in results["rows"]:
        total = row["reconstruction_nats"] + row["kl_nats"]
        assert abs(row["test_elbo_nats"] - total) < 1e-6, (row["test_elbo_nats"], total)
        assert row["test_nll_nats"] <= row["test_elbo_nats"] + 0.5
    (file,) = (tmp_path / "results").glob("study*.json")
    assert json.loads(file.read_text()) == results
    drawn = tmp_path / "figures" / f"{file.stem}-likelihoods.pdf"
    assert drawn.stat().st_size > 1000
    assert {log.stem for log in tmp_path.glob("*.log")} == set(cases)
    progress = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert len(progress) == 2 and max(map(len, progress)) <= 100, progress
