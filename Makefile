# make demo: set up, train on the embedded cohort, sample, and print where the picture is
# make demo-mrnet, demo-duke, demo-lidc: the same for knees, breasts and chests
# make demo-gan: the same for the GAN that diffusion is compared with
# make test: set up with the development tools, check the style and run every test; prints what the tests did not reach
# make test-fast: what is not marked slow, for the minutes between two edits
# make release: wheel, source archive and a zip for each bundle that comes with weights, into dist; the same bytes each time
# make lint: the checks of style and types alone
# make docs: the documentation as a site, site/index.html
# make wheelhouse: all that an installation needs, for a machine without a network
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Fresh pages cost more than they should when large tensors come and go: let malloc keep what it has (glibc only).
export MALLOC_MMAP_THRESHOLD_ ?= 4000000000
export MALLOC_TRIM_THRESHOLD_ ?= 8000000000
# No progress of installers or of Python's buffers: what is printed is for the person who waits.
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PYTHONUNBUFFERED = 1

.PHONY: demo demo-mrnet demo-duke demo-lidc demo-gan test test-fast lint docs release wheelhouse clean-demo

FAST_SAMPLER := --sampler dpmpp_2m --num_inference_steps 20

# Training, sampling and evaluation of one bundle's demo, and options of inference; on the page also samples of the weights that come with the bundle.
define run_demo
	$(BIN)/python -m monai.bundle run training --config_file "['bundles/$(1)/configs/train.yaml','bundles/$(1)/configs/demo.yaml']"
	$(BIN)/python -m monai.bundle run --config_file "['bundles/$(1)/configs/inference.json','bundles/$(1)/configs/demo.yaml']"
	$(if $(wildcard bundles/$(1)/released/model.pt),$(BIN)/python -m monai.bundle run --config_file bundles/$(1)/configs/inference.json \
		--models_dir bundles/$(1)/released --samples_dir bundles/$(1)/demo/released_weights --num_volumes 6 $(2))
	$(BIN)/python -m monai.bundle run --config_file "['bundles/$(1)/configs/evaluate.yaml','bundles/$(1)/configs/demo.yaml']" \
		$(if $(wildcard bundles/$(1)/released/model.pt),--compare_dir bundles/$(1)/demo/released_weights)
endef

demo: $(VENV)/.installed
	$(call run_demo,adni_ldm,$(FAST_SAMPLER))

demo-mrnet demo-duke demo-lidc: demo-%: $(VENV)/.installed
	$(call run_demo,$*_ldm,$(FAST_SAMPLER))

demo-gan: $(VENV)/.installed
	$(call run_demo,adni_gan)

# In the order of their folders: the long trainings of tests/bundles first, so that neither process waits for one at the end.
IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m slipcover --source medical_diffusion_components --skip-covered --out .coverage.txt \
		-m pytest $(IN_TWO)
	@echo "coverage by file: .coverage.txt; statements, not run, per cent:"
	@tail -n 1 .coverage.txt

test-fast: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(IN_TWO) -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

WHEELHOUSE ?= wheelhouse

wheelhouse:
	$(PYTHON) -m pip download --quiet --dest $(WHEELHOUSE) --constraint constraints.txt . setuptools wheel

release: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
release: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m medical_diffusion_components.release --out dist

clean-demo:
	rm -rf bundles/*/demo

EXTRAS := [prepare,dicom,segmentation,evaluation,manifests,docs,dev]

# This package, with the extras $(1).
define install
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".$(1)"
endef

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(call install)
	touch $@

$(VENV)/.installed-dev: setup.cfg pyproject.toml constraints.txt
	$(call install,$(EXTRAS))
	touch $(VENV)/.installed $@
