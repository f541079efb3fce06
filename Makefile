# Every target does its own set-up: .venv in this directory, and Debian packages where missing.

BIN := .venv/bin
C_FILES = $(wildcard src/tunnel/native/*.[ch]) $(shell find tests -name '*.[ch]')

help:
	@echo "make demo         two hosts on this machine, an overlay between them, and what it does"
	@echo "make demo-pods    pods of two nodes, made by real CNI plugins, and whom they reach"
	@echo "make demo-cluster three nodes that find each other in an etcd"
	@echo "make test         lint and every test; the last line counts them"
	@echo "make lint         ruff, mypy, clang-format"
	@echo "make bench-quick  this overlay beside plain veth, the kernel's vxlan and openvpn"
	@echo "make bench        every overlay that Debian has, on every link; 45 minutes"
	@echo "make chaos        nodes and etcd members of a cluster are killed in random order; 2 minutes"
	@echo "make clean        removes all that was built here"

# setuptools is installed first and used as it is: no build isolation, so that what is
# installed already needs no network.
.venv/installed: pyproject.toml setup.py $(wildcard src/tunnel/native/*.[ch])
	@.ci/packages python3-venv python3-dev gcc
	@test -x $(BIN)/python || python3 -m venv .venv
	@echo "installing tunnel into .venv"
	@$(BIN)/pip install -q --disable-pip-version-check 'setuptools>=77'
	@$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev]'
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

# Two minutes, where "make test" takes six seconds.
chaos: .venv/installed
	@.ci/packages iproute2 etcd-server
	@$(BIN)/python -m tests.netns.chaos 120

test: lint
	@.ci/packages iproute2 iputils-ping iperf3 ethtool nftables tcpdump tshark libpcap0.8 systemd \
		containernetworking-plugins udhcpc udhcpd etcd-server openssl clang libclang-rt-14-dev \
		valgrind
	@$(BIN)/pytest -n auto --dist loadfile

lint: .venv/installed
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/clang-format --dry-run -Werror $(C_FILES)

# Whatever other overlays Debian has, each measured if it comes up.
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

.PHONY: help demo demo-pods demo-cluster chaos test lint bench bench-quick clean
