# The README's two commands. Each does its own set-up; run again, they take what is there.
PYTHON ?= python3
VENV := .venv
SUDO := $(shell [ $$(id -u) = 0 ] || echo sudo)

# Processes that run tests; what brings up clouds is in one of them.
WORKERS ?= $(shell nproc | awk '{print $$1 < 4 ? $$1 : 4}')

# What a host needs of Debian: etcd; haproxy before several replicas; libvirt with QEMU; the network's tools; what builds the small guest; compilers for
# libvirt-python and the Cython kernels. And a directory server, which tests run as their own: it is installed without a
# configuration, so that the package starts none.
PACKAGES := etcd-server haproxy \
	libvirt-daemon-system libvirt-daemon-driver-qemu qemu-system-x86 qemu-utils genisoimage \
	dnsmasq-base nftables libnftables1 iproute2 iputils-ping openssh-client curl \
	syslinux mtools dosfstools cpio \
	slapd \
	libvirt-dev pkg-config gcc python3-dev python3-venv

.PHONY: cloud test keyed chaos conformance commands schemas fuzz system environment clean

cloud: environment  ## A cloud on this machine, with a server in it
	$(SUDO) $(VENV)/bin/brume up
	$(SUDO) $(VENV)/bin/brume demo

test: environment  ## All tests, the real virtual machine among them
	$(SUDO) $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

keyed: environment  ## The services' tests with an idempotency key on every call
	$(SUDO) $(VENV)/bin/python -m pytest -p tests.keyed tests/compute tests/identity tests/image tests/network tests/placement

conformance: environment  ## Tempest against a cloud of its own; ARGUMENTS="--only identity", "--check", "--json", ...
	$(SUDO) $(VENV)/bin/python tests/conformance/tempest/run.py $(ARGUMENTS)

commands: environment  ## Every identity command of the openstack client, the lock file's and Debian 12's, against a cloud of its own
	$(SUDO) $(VENV)/bin/python tests/conformance/identity_commands.py $(ARGUMENTS)

schemas: environment  ## Made-up calls of every operation of the OpenAPI documents, against a cloud of its own
	$(SUDO) $(VENV)/bin/python tests/conformance/schemathesis_run.py --cases $(or $(CASES),10000) $(ARGUMENTS)

chaos: environment  ## A cloud under fire for MINUTES, from SEED where it is given; ARGUMENTS="--clients 20 ..."
	$(SUDO) $(VENV)/bin/python -m tests.chaos.run --minutes $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED)) $(ARGUMENTS)

fuzz: environment  ## Random bytes through the transcoder and the decoder, MINUTES each; findings go to build/fuzz
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check "atheris>=3.0"
	@mkdir -p build/fuzz && cp -r tests/fuzz/corpus/. build/fuzz/
	@for part in transcode decode; do \
		$(VENV)/bin/python tests/fuzz/fuzz_$$part.py -max_total_time=$$(( $(or $(MINUTES),10) * 60 )) -timeout=20 \
			-artifact_prefix=build/fuzz/$$part- build/fuzz/$$part || exit 1; done

system:
	@missing=$$(for package in $(PACKAGES); do \
		dpkg-query --show --showformat='$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed || echo $$package; done); \
	if [ -n "$$missing" ]; then \
		echo "installing" $$missing; \
		echo "slapd slapd/no_configuration boolean true" | $(SUDO) debconf-set-selections; \
		$(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive \
			apt-get install -qq -y --no-install-recommends $$missing >/dev/null; fi

environment: system $(VENV)/.installed

# The lock file pins the whole development environment; the project itself is installed from this tree.
$(VENV)/.installed: requirements.lock pyproject.toml setup.py $(shell find protos scheduler control -name '*.proto' -o -name '*.pyx' -o -name '*.pxd')
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the Python environment into $(VENV)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf build dist *.egg-info $(VENV) .venv-tempest .venv-schemas .venv-canaille .venv-openstackclient
