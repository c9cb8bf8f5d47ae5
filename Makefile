# make demo       4 min on 2 cores: install, then train VAE, flow and GAN for a few epochs into demo/
# make test       3 min: install, then run the tests
# make models     86 min: the three models, three seeds each; the VAE of two dimensions, the plain GAN
# make variants   117 min, after make models: a VAE and a flow of higher likelihood, two more VAEs for the report, walks among codes
# make compare    40 min, after make models and make variants: all compared on held-out data
# make study      215 min: the VAE in all its variants, VAE, flow and GAN without parts of their recipes
# make bench      9 min: training speed against the bare matrix products
# make soak       12 min: kills, full disks, damaged files, absurd flags, and what was lost by them
# make demonstrations   22 s: the small experiments of the report
# make page       4 s: report/explore.html, the trained models to play with in a browser
# make report     run what has no results yet, which it lists first, then make pdf
# make pdf        compile the report from figures and results as they are; needs LaTeX
#                 pdf and report take NAME='Ada Wen' NUMBER=1234567 EMAIL=ada@uva.nl, and keep them
# make check      go through the assignment's questions: is everything there, and good enough?
# make readme     fill the README's tables from the results
# make submission LASTNAME=wen   pack wen_assignment3.zip
# make lint       check the style
# make clean      remove .venv, checkpoints, demo, study and by-products of LaTeX; results stay

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
export PYTHONUNBUFFERED := 1
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: demo test lint models variants compare study bench soak demonstrations page report pdf check \
        readme submission clean
.NOTPARALLEL:

# A half-finished installation leaves no mark, so that the next call begins it again.
$(VENV)/installed: requirements.txt
	@cd code && $(PYTHON) -c 'import a3'
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
	OMP_NUM_THREADS=1 $(PY) -m pytest -c code/pyproject.toml -n 2 --dist worksteal code/tests

lint: $(VENV)/installed
	$(PY) -m ruff check --no-cache code
	$(PY) -m ruff check --no-cache --config code/pyproject.toml report

# A complete run, if its checkpoint is there, is only evaluated again; a stopped one goes on.
models: $(VENV)/installed
	$(PY) code/a3_vae_template.py --resume
	$(PY) code/a3_vae_template.py --resume --seed 1
	$(PY) code/a3_vae_template.py --resume --seed 2
	$(PY) code/a3_vae_template.py --resume --zdim 2
	$(PY) code/a3_nf_template.py --resume
	$(PY) code/a3_nf_template.py --resume --seed 1
	$(PY) code/a3_nf_template.py --resume --seed 2
	$(PY) code/a3_gan_template.py --resume
	$(PY) code/a3_gan_template.py --resume --seed 1
	$(PY) code/a3_gan_template.py --resume --seed 2
	$(PY) code/a3_gan_template.py --resume --recipe template

variants: $(VENV)/installed
	$(PY) code/vae_variants.py --resume --recipe best
	$(PY) code/vae_variants.py --resume --prior flow
	$(PY) code/vae_variants.py --resume --objective uae
	$(PY) code/nf_multiscale.py --resume
	$(PY) code/walks.py

compare: $(VENV)/installed
	$(PY) code/evaluate.py

study: $(VENV)/installed
	$(PY) code/study.py
	$(PY) code/ablation.py

bench: $(VENV)/installed
	$(PY) code/benchmark.py

soak: $(VENV)/installed
	$(PY) code/tests/soak.py

# The small experiments of the report.
demonstrations: $(VENV)/installed
	$(PY) report/demonstrations.py

page: $(VENV)/installed
	$(PY) report/page.py

# Who wrote it, if the command says so (some shells set NAME and EMAIL themselves), goes through
# the environment, read by neither make nor the shell.
define author
ifeq ($(origin $(1)),command line)
override $(1) := $$(value $(1))
override A3_$(1) := $$(value $(1))
export A3_$(1)
endif
endef
$(foreach key,NAME NUMBER EMAIL,$(eval $(call author,$(key))))

# What has no results yet, and nothing else, is run.
report: $(VENV)/installed
	@$(PY) report/missing.py
	@$(PYTHON) report/pdf.py

pdf:
	@$(PYTHON) report/pdf.py

readme:
	@$(PYTHON) report/readme.py

check:
	@$(PYTHON) report/check.py

# The name goes through the environment, read by neither make nor the shell.
override LASTNAME := $(value LASTNAME)
export LASTNAME
submission:
	@$(PYTHON) report/submission.py

clean:
	rm -rf $(VENV) checkpoints demo study
	cd report && rm -rf build numbers.tex *.aux *.bbl *.blg *.fdb_latexmk *.fls *.log *.out
