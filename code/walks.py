"""Walks among the codes of a trained VAE: what do its latent dimensions mean?

Draws from the prior, walks between two digits on the line and on the great arc, adds attribute
vectors (White 2016; Garcia 2019, section 3.3), and varies single dimensions.

    python code/walks.py               # of the run vae-z20; 10 s on 2 cores
    python code/walks.py vae-best      # of any other finished run of the VAE or its variants
"""

import argparse
from collections.abc import Sequence

from a3.cli import exit_with, parse, run_name, seed_int, tool_flags
from a3.records import REPOSITORY, write_record
from a3.runs import RunError, random_stream
from a3.vae_walks import draw_walks
from datasets import bmnist, labelled
from vae_variants import trained_vae


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of the command line."""
    parser = tool_flags("Draw walks among the codes of a trained VAE.")
    parser.add_argument("run", nargs="?", default="vae-z20", metavar="RUN",
                        help="finished run of the VAE or of a variant")
    parser.add_argument("--seed", type=seed_int, default=42, help="seed of the samples")
    return parse(parser, argv)


def main(argv: Sequence[str] | None = None) -> dict:
    """Draw the walks; write <run>-walk.json and return what it holds."""
    args = parse_args(argv)
    model, results = trained_vae(args.run, args.out, args.device)
    test = bmnist(args.data_root, dataset=results["data"]["name"], device=args.device)[2]
    digits = labelled(test, args.data_root)
    if digits is None:
        raise RunError("walks start from labelled digits, which need MNIST; put it under the data "
                       "folder, or name another with --data_root")
    report, name = args.out or REPOSITORY / "report", run_name(f"{args.run}-walk", args,
                                                               named=["run"])
    numbers = draw_walks(model, digits, random_stream(args.seed, "walks"),
                         lambda figure: report / "figures" / f"{name}-{figure}")
    record = write_record(report / "results" / f"{name}.json", args.device, **numbers,
                          run=args.run, seed=args.seed)
    print(f"done: {report / 'results' / name}.json, figures in {report / 'figures'}")
    return record


if __name__ == "__main__":
    exit_with(main)
