# Every target sets itself up: .venv in this directory, and the Debian packages that are missing.

BIN := .venv/bin
C_FILES = $(wildcard src/tunnel/native/*.[ch]) $(shell find tests -name '*.[ch]')

help:
	@echo "make demo         connects two hosts on this machine by an overlay and measures it"
	@echo "make demo-pods    connects pods of two nodes through real CNI plugins"
	@echo "make demo-cluster starts three nodes that find each other in etcd"
	@echo "make check        lint, unit tests and C tests, for every small step; needs no root"
	@echo "make test         lint, docs and every test, as root; the last line counts the tests"
	@echo "make unreadable   runs tests (ARGS=FILES) in a clone that only root can enter"
	@echo "make lint         ruff, mypy, clang-format"
	@echo "make docs         builds the documentation into build/site"
	@echo "make bench-quick  compares with plain veth, the kernel's vxlan and openvpn"
	@echo "make bench        compares with every overlay in Debian, on every link; 45 minutes"
	@echo "make chaos        kills nodes and etcd members of a cluster in random order; 2 minutes"
	@echo "make clean        removes everything that was built here"

# setuptools is installed first and used without build isolation, so that a second run needs no
# network.
.venv/installed: pyproject.toml setup.py $(wildcard src/tunnel/native/*.[ch])
	@.ci/packages python3-venv python3-dev gcc
	@test -x $(BIN)/python || python3 -m venv .venv
	@echo "installing tunnel into .venv"
	@$(BIN)/pip install -q --disable-pip-version-check 'setuptools>=77'
	@$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev,docs]'
	@touch $@

demo: .venv/installed
	@.ci/packages iproute2 iputils-ping
	@$(BIN)/tunnel demo

demo-pods: .venv/installed
	@.ci/packages iproute2 nftables containernetworking-plugins
	@$(BIN)/python -m examples.pods

demo-cluster: .venv/installed
	@.ci/packages iproute2 iputils-ping etcd-server
	@$(BIN)/python -m examples.cluster

# "make test" runs the same for six seconds.
chaos: .venv/installed
	@.ci/packages iproute2 etcd-server
	@$(BIN)/python -m tests.netns.chaos 120

# Tests of one file may run on different workers: otherwise the last long file delays the end.
PYTEST := $(BIN)/pytest -n auto --dist worksteal

check: lint
	@$(PYTEST) tests/unit tests/native tests/test_architecture.py

test: lint docs
	@.ci/packages iproute2 iputils-ping iperf3 ethtool nftables tcpdump tshark libpcap0.8 systemd \
		containernetworking-plugins udhcpc udhcpd etcd-server openssl clang libclang-rt-14-dev \
		valgrind
	@$(PYTEST)

unreadable: .venv/installed
	@tests/unreadable.sh $(ARGS)

docs: .venv/installed
	@mkdir -p build
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict >build/docs.log 2>&1 || \
		{ cat build/docs.log; exit 1; }

lint: .venv/installed
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/clang-format --dry-run -Werror $(C_FILES)

# Every other overlay that Debian has; those that fail to start are left out.
bench: .venv/installed
	@.ci/packages iproute2 iputils-ping iperf3 ethtool socat fastd openvpn tinc vtun n2n nebula \
		wireguard-go wireguard-tools
	@$(BIN)/python -m benchmarks.full
	@$(BIN)/python -m benchmarks.scaling --keep
	@$(BIN)/python -m benchmarks.micro --keep
	@$(BIN)/python -m benchmarks.report

bench-quick: .venv/installed
	@.ci/packages iproute2 iputils-ping iperf3 ethtool openvpn socat
	@$(BIN)/python -m benchmarks.quick

clean:
	rm -rf .venv build dist src/*.egg-info src/tunnel/*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help demo demo-pods demo-cluster chaos check test unreadable lint docs bench bench-quick clean
