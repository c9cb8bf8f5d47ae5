# make demo    install, then train every model for a few epochs into demo/     (4 min on 2 cores)
# make test    install, then run the tests                                   (1.5 min on 2 cores)
# make models  the full runs of the three models                               (80 min on 2 cores)
# make compare the three compared, after their runs                            (15 min on 2 cores)
# make study   the VAE in all its variants                                     (60 min on 2 cores)
# make lint    check the style
# make bench   training speed against the bare matrix products
# make clean   remove what was trained or installed; the committed report stays

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
export PYTHONUNBUFFERED := 1
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: demo test lint models compare study bench clean

# A half-finished installation leaves no mark, so that the next call begins it again.
$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: '$(PYTHON)' is older than Python 3.10; give a newer one as PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: $(VENV)/installed
	$(PY) code/a3_vae_template.py --epochs 6 --out demo
	$(PY) code/a3_vae_template.py --epochs 6 --out demo --zdim 2
	$(PY) code/a3_nf_template.py --epochs 4 --limit 20000 --iw_samples 4 --out demo
	$(PY) code/a3_gan_template.py --n_epochs 4 --limit 20000 --out demo
	@echo
	@echo "Look into demo/figures (curves, samples, manifold) and demo/results (numbers)."
	@echo "The figures and numbers of the full runs are in report/figures and report/results."

test: $(VENV)/installed
	$(PY) -m pytest -c code/pyproject.toml code/tests

lint: $(VENV)/installed
	$(PY) -m ruff check --no-cache code

# A run that is complete is only evaluated again; one that was stopped goes on.
models: $(VENV)/installed
	$(PY) code/a3_vae_template.py --resume --walks
	$(PY) code/a3_vae_template.py --resume --seed 1
	$(PY) code/a3_vae_template.py --resume --seed 2
	$(PY) code/a3_vae_template.py --resume --zdim 2
	$(PY) code/a3_nf_template.py --resume
	$(PY) code/a3_gan_template.py --resume
	$(PY) code/a3_gan_template.py --resume --recipe template

compare: $(VENV)/installed
	$(PY) code/evaluate.py

study: $(VENV)/installed
	$(PY) code/study.py

bench: $(VENV)/installed
	$(PY) code/benchmark.py

clean:
	rm -rf $(VENV) checkpoints demo study
