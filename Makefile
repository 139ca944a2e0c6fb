# make run    from a fresh clone to Python, JavaScript and shell code that runs in VMs
# make test   every check, the quick ones first
# make wheel  the Python package, with sbx in it, in target/wheels
# All install and build what is missing and do nothing twice.

STEP := scripts/step
SBX := target/release/sbx
PYTHON := target/python-venv/bin
export NEXTEST_PROFILE := $(if $(CI),ci,default)

.PHONY: run test wheel setup assets tools python-venv

run: setup assets
	@$(STEP) 'sbx' cargo build --release --package exec-sandbox-cli --package exec-sandbox-gateway
	@$(STEP) 'this machine' $(SBX) doctor
	@$(STEP) 'a VM runs Python' $(SBX) run --code 'import sys; print("Hello from Python", sys.version.split()[0])'
	@$(STEP) 'a VM runs JavaScript' $(SBX) run --language javascript --code 'const hello: string = "Hello from Bun"; console.log(hello, Bun.version)'
	@$(STEP) 'a VM runs a shell' $(SBX) run --language raw --code 'echo "Hello from $$(uname -a)"'

# Advisories are left out, for they need a database from the network.
test: setup tools python-venv
	@$(STEP) 'format' cargo fmt --all --check
	@$(STEP) 'Python format' $(PYTHON)/ruff format --quiet --check python
	@$(STEP) 'Python lint' $(PYTHON)/ruff check --quiet python
	@$(STEP) 'house' cargo nextest run --package xtask
	@$(STEP) 'clippy' cargo clippy --workspace --all-targets -- --deny warnings
	@$(STEP) 'deny' cargo deny --log-level error check licenses bans sources
	@$(STEP) 'unit tests' cargo nextest run --workspace --exclude vmtests --exclude xtask
	@$(STEP) 'fuzz' cargo xtask fuzz --seconds 4
	@$(STEP) 'assets' cargo xtask assets
	@$(STEP) 'sbx' cargo build --package exec-sandbox-cli --package exec-sandbox-gateway
	@$(STEP) 'Python package' scripts/python-install
	@$(STEP) 'Python types' scripts/python-types
	@$(STEP) 'Python tests' $(PYTHON)/pytest --quiet -m 'not vm'
	@$(STEP) 'VM tests' cargo nextest run --package vmtests
	@$(STEP) 'Python VM tests' $(PYTHON)/pytest --quiet -m vm

wheel: setup python-venv
	@$(STEP) 'wheel' scripts/python-wheel

setup:
	@$(STEP) 'system packages' scripts/system-packages.sh

assets: setup
	@$(STEP) 'xtask' cargo build --package xtask
	@$(STEP) 'assets' cargo xtask assets

python-venv: setup
	@$(STEP) 'Python environment' scripts/python-venv

tools:
	@cargo nextest --version >/dev/null 2>&1 || $(STEP) 'cargo-nextest' cargo install cargo-nextest --locked
	@cargo deny --version >/dev/null 2>&1 || $(STEP) 'cargo-deny' cargo install cargo-deny --locked
