"""What the scripts share, one subject a file; the first word of a name says whom it serves.

    cli, runs, records, devices     every script: flags, the life of a run, results, hardware
    fetch                           the files of the data sets: found, downloaded, verified
    figures, latents, importance    curves and grids, paths between codes, likelihood estimates
    vae_*, gan_*, nf_*              one model's parts
    judge_*                         how good samples are

Nothing here imports a script or ``datasets``: images are handed in.
"""
