"""The study on a handful of images: every case runs, and failures are told."""

import json

import study


def test_every_case_has_flags_that_parse_and_a_name_of_its_own():
    parsed = [study.vae.parse_args(flags) for flags in study.CASES.values()]
    assert len({str(sorted(vars(args).items())) for args in parsed}) == len(study.CASES)


def test_cases_run_and_are_written(tmp_path):
    cases = ["ELBO", "Gaussian likelihood", "flow posterior"]
    results = study.main(["--epochs", "1", "--limit", "256", "--dataset", "sample", "--device",
                          "cpu", "--out", str(tmp_path), "--cases", *cases])
    assert [row["name"] for row in results["rows"]] == cases
    for row in results["rows"]:
        total = row["reconstruction_nats"] + row["kl_nats"]
        assert abs(row["test_elbo_nats"] - total) < 1e-6
        assert row["test_nll_nats"] <= row["test_elbo_nats"] + 0.5
    assert json.loads((tmp_path / "results/study.json").read_text()) == results
    assert (tmp_path / "figures/study-likelihoods.pdf").stat().st_size > 1000
