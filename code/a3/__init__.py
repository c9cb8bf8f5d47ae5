"""What the scripts share, one subject a file; the first word of a name says whom it serves.

    cli               flags, recipes, the name of a run, errors in one line
    runs              the life of a run: seeds, schedule, checkpoints, resuming, progress
    checkpoints       a run's state on the disk: verified, locked, set aside
    interrupts        Ctrl-C and SIGTERM, which wait while a file is written
    ranks             one training by several processes: shares of a batch, sums, restarts
    records           files written whole or not at all: JSON, CSV, with the commit
    devices           what the hardware is called, and good at
    speed             cross-entropy and dropout, faster on a CPU
    fetch             data files: found or downloaded, verified, read
    figures           any curve, scatter plot or image grid
    latents           lines, arcs and grids in latent space
    importance        likelihood by importance sampling
    vae_figures       what a run of the VAE draws; gan_figures and nf_figures likewise
    vae_objectives    what else than the ELBO a VAE can be trained on
    vae_flows         couplings of codes, for posterior and prior
    vae_monitors      posterior collapse and information overload
    gan_losses        losses of D and G, penalties, minibatch deviation
    judge_classifier  the networks that judge samples: digits, features
    judge_metrics     distances between two sets of features
    judge_comparison  the comparison's table: all measures, over trainings, ranks
    judge_memory      whether samples are copies of training images
    judge_trained     a trained model of any kind, as those see it who judge it or draw from it
    nf_bits           where a flow spends its bits

Nothing here imports a script or ``datasets``: images are handed in. This file refuses an old
Python: the scripts and the report's tools import it, the Makefile runs it.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - this file is valid in older ones
    sys.exit("error: Python 3.10 or newer is needed; this is "
             f"{'.'.join(map(str, sys.version_info[:3]))} ('{sys.executable}'); "
             "make takes another one as PYTHON=...")

from a3 import interrupts  # noqa: F401  before what takes seconds to import
