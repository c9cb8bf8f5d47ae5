# make demo    install, then train every model for a few epochs into demo/     (4 min on 2 cores)
# make test    install, then run the tests                                   (1.5 min on 2 cores)
# make models  the full runs of the three models                               (100 min on 2 cores)
# make compare the three compared, after their runs                            (15 min on 2 cores)
# make study   the VAE in all its variants                                     (60 min on 2 cores)
# make report  train what has no results yet, then as pdf            (seconds: results are there)
# make demonstrations   the small experiments of the report                      (12 s on one core)
# make pdf     the report, from figures and results as they are; needs LaTeX, trains nothing
# make check   go through the assignment's questions: is everything there, and good enough?
# make submission LASTNAME=wen   pack wen_assignment3.zip
# make lint    check the style
# make bench   training speed against the bare matrix products
# make clean   remove what was trained or installed; the committed report stays

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
export PYTHONUNBUFFERED := 1
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: demo test lint models compare study demonstrations bench report pdf check submission clean
.NOTPARALLEL:

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
	$(PY) -m ruff check --no-cache --config code/pyproject.toml report

# A run that is complete is only evaluated again; one that was stopped goes on.
models: $(VENV)/installed
	$(PY) code/a3_vae_template.py --resume --walks
	$(PY) code/a3_vae_template.py --resume --seed 1
	$(PY) code/a3_vae_template.py --resume --seed 2
	$(PY) code/a3_vae_template.py --resume --zdim 2
	$(PY) code/a3_vae_template.py --resume --recipe best --nll_samples 1000
	$(PY) code/a3_nf_template.py --resume
	$(PY) code/a3_gan_template.py --resume
	$(PY) code/a3_gan_template.py --resume --recipe template

compare: $(VENV)/installed
	$(PY) code/evaluate.py

study: $(VENV)/installed
	$(PY) code/study.py

bench: $(VENV)/installed
	$(PY) code/benchmark.py

# The small experiments of the report.
demonstrations: $(VENV)/installed
	$(PY) report/demonstrations.py

# The targets whose results are missing, in the order in which they need each other.
MODELS := $(patsubst %,report/results/%.json,vae-z20 vae-z20-seed1 vae-z20-seed2 vae-z2 vae-best nf gan gan-template)
MISSING := $(if $(filter-out $(wildcard $(MODELS)),$(MODELS)),models) \
  $(if $(wildcard report/results/comparison.json),,compare) \
  $(if $(wildcard report/results/study.json),,study) \
  $(if $(wildcard report/results/benchmark.json),,bench) \
  $(if $(wildcard report/results/demonstrations.json),,demonstrations)

report: $(MISSING) pdf

LATEX := latexmk texlive-latex-recommended texlive-latex-extra texlive-fonts-recommended texlive-bibtex-extra
pdf:
	@$(PYTHON) report/macros.py
	@command -v latexmk > /dev/null && command -v pdflatex > /dev/null \
	  || { echo "error: the PDF needs LaTeX; on Debian or Ubuntu: apt-get install $(LATEX)"; exit 1; }
	@cd report && latexmk -g -pdf -silent -interaction=nonstopmode -halt-on-error report.tex \
	  > latexmk.log 2>&1 || { grep -A 3 '^!' report.log || cat latexmk.log; exit 1; }
	@echo "done: report/report.pdf"

check:
	@$(PYTHON) report/check.py

submission:
	@$(PYTHON) report/submission.py $(LASTNAME)

clean:
	rm -rf $(VENV) checkpoints demo study
	cd report && rm -f numbers.tex *.aux *.bbl *.blg *.fdb_latexmk *.fls *.log *.out
